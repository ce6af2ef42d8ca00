"""The rules that autograd carries, on any module: attach, then ``loss.backward()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.algorithms.base import Algorithm, Report, refuse_input_gradient
from targetprop.algorithms.losses import Loss
from targetprop.attach import Feedback, attach
from targetprop.attach.entry import solver_of
from targetprop.attach.link import backpropagating, links_of
from targetprop.feedback import FeedbackReport
from targetprop.laboratory.pairing import Network, at_least_float32
from targetprop.maps import is_feedback
from targetprop.rules import Rule


class AttachedAlgorithm(Algorithm):
    r"""A rule on any ``nn.Module``, as an algorithm like all others; see :func:`targetprop.attach`.

        e^{n-1} = (∂ρ)ᵀ A_Bᵀ eⁿ,   ∇θⁿ = ∂⟨eⁿ, A_θ sⁿ⁻¹⟩/∂θⁿ

    B is as the rule has it, θ itself for backpropagation. A network of ``targetprop.pair`` keeps
    its ω, unless the rule draws them by a law of its own.

    Attributes:
        rule: what the maps send back; None for backpropagation.
        feedback: the handle; None for backpropagation, and before the first batch for direct
            feedback alignment.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        >>> algo = tp.algorithms.FeedbackAlignment(model)
        >>> optimizer = algo.follow(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> report = algo.backward(torch.randn(32, 8), torch.randint(4, (32,)))
        >>> optimizer.step()
    """

    any_module = True
    rule_type: type[Rule] | None = None
    """Of the rule; its fields are settings of the algorithm."""

    def __init__(
        self, net: nn.Module, solver: Any = None, seed: int | None = None,
        loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0,
        example_inputs: Sequence[Any] = (), beta: float | None = None, **fields: Any,
    ):  # fmt: skip
        """Attach ``net``; where the rule is attached already, its handle is used as it is.

        Args:
            net: any module.
            solver: how ω learn, as for ``attach``; default the rule's.
            seed: of ω and of the noise; default 0.
            loss: as for every algorithm; of the logits, or the ``logits`` of a model's output.
            label_smoothing: as for every algorithm.
            example_inputs: as for ``attach``; for direct feedback alignment, else its first batch.
            beta: of activations given as modules, as for ``attach``.
            fields: those of the rule, such as ``variant`` of sign symmetry.

        Raises:
            TypeError: the rule has no such field.
            ValueError: attached by another rule or with other settings, or ``attach`` refuses it.
        """
        super().__init__(net, loss, label_smoothing)
        self.rule = None if self.rule_type is None else self.rule_type(**fields)
        self.papers = ("rumelhart1986",) if self.rule is None else self.rule.papers
        if beta is not None and isinstance(net, Network):
            raise ValueError(
                f"{type(self).__name__} carries errors through a network of targetprop.pair, so "
                f"beta={beta} would change nothing; leave it out."
            )
        given = {"solver": solver, "seed": seed, "beta": beta}
        self.settings = {name: value for name, value in given.items() if value is not None}
        self.feedback: Feedback | None = None
        self._followed: list[Any] = []
        self._pending: dict[str, Any] = {}
        self._forward: Callable[[Tensor], Any] = net
        if self.rule is not None:
            self.feedback = handle_of(net, self.rule, self.settings)
            if self.feedback is None and (example_inputs or not self.rule.direct):
                self.attach(*example_inputs)

    @property
    def solver(self) -> Any:
        """How ω learn; None for backpropagation, and before the module is attached."""
        return None if self.feedback is None else self.feedback.solver

    @property
    def name(self) -> str:
        """Of the rule."""
        return "backprop" if self.rule is None else self.rule.name

    def attach(self, *example_inputs: Any) -> None:
        """Attach the module; its feedback then learns in the steps of the followed optimizers."""
        rule: Any = self.rule
        self.feedback = attach(self.net, *example_inputs, rule=rule, **self.settings)
        for optimizer in self._followed:
            self.feedback.follow(optimizer)
        if self._pending:
            self.load_state_dict(self._pending)

    def ready(self, x: Tensor) -> None:
        """Attach the module by the batch x, where it is not attached yet."""
        if self.rule is not None and self.feedback is None:
            self.attach(x[:2])

    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Add to ``.grad`` of the forward parameters, and of the loss's and of x, if they need any.

        Where no optimizer is followed, the maps that are due are probed here: ω learn, untracked.
        """
        with backpropagating(self.net) if self.rule is None else nullcontext():
            return self._backward(x, y)

    def _backward(self, x: Tensor, y: Tensor) -> Report:
        self.check(x)
        if isinstance(self.net, Network):
            self.net.refuse_hooked_norms()
            if self.rule is not None:
                refuse_input_gradient(x)
        self.ready(x)
        if (
            self.feedback is not None
            and not self.feedback.followed
            and not self.feedback.rule.tracks
        ):
            self.feedback.step()
        logits = logits_of(self._forward(x), self.net)
        loss = self.backpropagate(
            self.loss(logits, y), [p for p in forward_parameters(self.net) if p.requires_grad]
        )
        return Report(
            loss,
            logits.detach(),
            named_by_layer(self.net, self.reports()) if self.feedback else {},
        )

    def reports(self) -> dict[str, FeedbackReport]:
        """Per map, what its solver did in the last step; of one at rest, what it last measured."""
        feedback: Any = self.feedback
        found = {}
        for name, memory in feedback.learning.memory.items():
            known = memory.mismatch if math.isfinite(memory.mismatch) else None
            found[name] = feedback.report.get(name) or FeedbackReport(0, None, known)
        return found | feedback.report

    def follow(self, optimizer: Any) -> Any:
        """Track and probe in the optimizer's steps; returns it."""
        self._followed.append(optimizer)
        return optimizer if self.feedback is None else self.feedback.follow(optimizer)

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse both passes."""
        if self.rule is not None and self.rule.direct:
            raise ValueError(
                "direct feedback alignment hands errors around the graph and cannot be compiled; "
                "drop compile."
            )
        self._forward = torch.compile(self.net, mode=mode)

    def state_dict(self) -> dict[str, Any]:
        """The solver's memory, a copy; load the module's own ``state_dict``, with ω, before it."""
        return {} if self.feedback is None else {"feedback": self.feedback.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: it is of another algorithm or of other maps.
        """
        if set(state) - {"feedback"} or (state and self.rule is None):
            raise ValueError(
                f"this state is of another algorithm than {self.name} on a plain module, got "
                f"{sorted(state)}."
            )
        if self.feedback is None:
            self._pending = dict(state)
        elif state:
            self.feedback.load_state_dict(state["feedback"])


def carried(rule: type[Rule]) -> type[AttachedAlgorithm]:
    """The algorithm of a rule that autograd carries, named and described as the rule is."""
    places = {
        "rule_type": rule,
        "rows": rule.rows,
        "__doc__": rule.__doc__,
        "__module__": "targetprop.algorithms",
    }
    return type(rule.__name__, (AttachedAlgorithm,), places)


def handle_of(net: nn.Module, rule: Rule, settings: dict[str, Any]) -> Feedback | None:
    """The live handle of a module that is attached by ``rule``; None where there is none.

    Raises:
        ValueError: it was attached with other settings than ``settings``.
    """
    handles = [
        link.handle for link in links_of(net) if link.handle is not None and link.rule == rule
    ]
    found: Feedback | None = next(
        (handle for handle in handles if handle is not None and handle.model is net), None
    )
    if found is None:
        return None
    solver = settings.get("solver")
    own = {"solver": found.solver, "seed": found.seed, "beta": found.beta}
    wanted = {**settings, "solver": None if solver is None else solver_of(solver, rule)}
    for name, value in wanted.items():
        if value is not None and value != own.get(name):
            raise ValueError(
                f"the module is attached with other settings already, got {name}={value}; leave "
                f"{name} out."
            )
    return found


def named_by_layer(net: nn.Module, found: dict[str, Any]) -> dict[str, Any]:
    """What was found per map or weight, by the names that a network of ``pair`` gives layers."""
    if not isinstance(net, Network):
        return dict(found)
    places = {
        id(layer.forward_map): name for layer, name in zip(net.layers, net.names, strict=True)
    }
    names = {
        path: places[id(module)] for path, module in net.named_modules() if id(module) in places
    }
    return {names.get(key.removesuffix(".weight"), key): value for key, value in found.items()}


def logits_of(output: Any, net: nn.Module) -> Tensor:
    """The logits in what a model returned, in float32 at least.

    Raises:
        TypeError: there are none.
    """
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"{type(net).__name__} returned {type(output).__name__}; expected logits as a tensor, "
            "or an output with .logits."
        )
    return at_least_float32(found)


def forward_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are no feedback."""
    return [p for name, p in net.named_parameters() if not is_feedback(name)]
