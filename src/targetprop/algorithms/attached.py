"""The rules that autograd carries, on any module: attach, then ``loss.backward()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.algorithms.base import Algorithm, Loss, Report
from targetprop.attach import Feedback, attach
from targetprop.attach.modules import is_feedback
from targetprop.rules import Rule, rule_of


class Attached(Algorithm):
    r"""A rule on any ``nn.Module``, behind the interface of all algorithms; see :func:`targetprop.attach`.

        e^{n-1} = (∂ρ)ᵀ A_Bᵀ eⁿ,   ∇θⁿ = ∂⟨eⁿ, A_θ sⁿ⁻¹⟩/∂θⁿ,        B as the rule has it; θ itself for backpropagation

    The named algorithms make one where the network is not one of ``targetprop.pair``: ``LDRL(resnet)``,
    ``FeedbackAlignment(vit)``. L-DRL is taken at an infinitesimal nudge there unless a ``beta`` is given.

    Attributes:
        feedback: the handle; None for backpropagation, and for direct feedback alignment before its first batch.

    Example:
        >>> algo = tp.algorithms.LDRL(model)
        >>> algo.follow(optimizer)
        >>> report = algo.backward(x, y)
        >>> optimizer.step()

    """

    def __init__(
        self, net: nn.Module, rule: str | Rule = "ldrl", loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0,
        **settings: Any,
    ):  # fmt: skip
        """Attach ``net`` by ``rule``, ``"backprop"`` or one of ``targetprop.rules``; ``settings`` go to ``attach``."""
        super().__init__(net, loss, label_smoothing)  # type: ignore[arg-type]
        self.rule = None if rule == "backprop" else rule_of(rule)
        self.settings = settings
        self.feedback: Feedback | None = None
        self._followed: list[Any] = []
        self._forward: Callable[[Tensor], Tensor] = net
        if self.rule is not None and not self.rule.direct:
            self.feedback = attach(net, rule=self.rule, **settings)

    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Add the gradients to ``.grad`` of the forward parameters, and to those of the loss and of x where they need any."""
        if len(x) == 0:
            raise ValueError(f"a batch of shape {tuple(x.shape)} has no samples to learn from; leave it out.")
        if self.rule is not None and self.feedback is None:
            self.feedback = attach(self.net, x[:2], rule=self.rule, **self.settings)
            for optimizer in self._followed:
                self.feedback.follow(optimizer)
        logits = self._forward(x)
        loss = self.carry(self.loss(logits, y), [p for p in forward_parameters(self.net) if p.requires_grad])
        return Report(loss, logits.detach(), dict(self.feedback.report) if self.feedback else {})

    def follow(self, optimizer: Any) -> None:
        """Track and probe in the optimizer's steps."""
        self._followed.append(optimizer)
        if self.feedback is not None:
            self.feedback.follow(optimizer)

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse both passes."""
        if self.rule is not None and self.rule.direct:
            raise ValueError("direct feedback alignment hands errors around the graph and cannot be compiled; drop compile.")
        self._forward = torch.compile(self.net, mode=mode)  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """The solver's memory."""
        return {} if self.feedback is None else {"feedback": self.feedback.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        if self.feedback is not None and state:
            self.feedback.load_state_dict(state["feedback"])


def forward_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are no feedback."""
    return [p for name, p in net.named_parameters() if not is_feedback(name)]
