"""What attached modules share: a class, a link to the model's feedback, direct feedback's error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from targetprop.attach import function, refusals
from targetprop.attach.function import needs_gradient, transformed
from targetprop.attach.loads import LEFT_OUT, Loads
from targetprop.maps import is_feedback
from targetprop.rules import Rule


@dataclass
class Link:
    """What the attached modules of one model share.

    Attributes:
        rule: what their maps send back.
        direct: as the rule has it, also while the example inputs run by another.
        exact: backpropagate for now.
        loads: what was loaded since the maps were last measured.
        foreign: the user was told that weights from elsewhere ran.
        beta: the nudge of activations, or None for an infinitesimal one.
        error: ∂ℓ/∂(output) of the backward pass under way, for direct feedback alignment.
        left_out: names of modules that the user left alone.
        handle: the model's ``Feedback``, which so lives as long as the model; copies have none.
        taught: how often the handle learned something, or looked whether it should.
        exacts: how often backpropagation was asked for.
    """

    rule: Rule
    direct: bool = False
    exact: bool = False
    loads: Loads = field(default_factory=Loads)
    foreign: bool = False
    beta: float | None = None
    left_out: tuple[str, ...] = ()
    error: Tensor | None = field(default=None, repr=False)
    handle: Any = field(default=None, repr=False, compare=False)
    taught: int = 0
    exacts: int = 0

    def refresh(self, module: nn.Module) -> None:
        """Let ω learn weights that they do not fit, before a signal travels through ``module``."""
        if transformed():
            return
        if self.handle is not None:
            self.handle.refresh()
        elif module.__dict__.get(LEFT_OUT):
            refusals.tell_copy()
            self.loads.settle(())

    def __getstate__(self) -> dict[str, Any]:
        """Without a pass under way (error, ``exact``) and the handle, which is another model's."""
        return self.__dict__ | {"error": None, "exact": False, "handle": None}


class AttachedModule(nn.Module):
    """What every attached module adds to its class."""

    _feedback: Link
    _feedback_base: type[nn.Module]
    _feedback_kind: str

    def __init_subclass__(cls, **settings: Any):
        """A class of ours is none that the user's base class should register or check."""

    if TYPE_CHECKING:  # the attributes of the class it is mixed into

        def __getattr__(self, name: str) -> Any: ...

    def __reduce_ex__(self, protocol):
        """The class is made anew where the module is unpickled."""
        from targetprop.attach.kinds import rebuilt

        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__.copy()
        return rebuilt, (self._feedback_base, self._feedback_kind), state

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """Load a plain checkpoint strictly too: ω stay, and learn the new θ in the next pass."""
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        brought = {
            name
            for name, value in self._parameters.items()
            if value is not None and is_feedback(name) and prefix + name in state_dict
            if not value.is_meta
        }
        missing_keys += [key for key in missing if not is_feedback(key)]
        link = self._feedback
        left_out = any(is_feedback(key) for key in missing)
        link.loads.note(self, brought, left_out)
        if link.handle is not None:
            link.loads.weigh(link.handle.modules.values())
            if local_metadata.get("assign_to_params_buffers"):
                link.handle.learning.see([s for s in link.handle.sites if s.module is self])

    def _sent(self, weight: Tensor, name: str) -> Tensor:
        """B of this module: what its rule makes of θ and the ω called ``name``."""
        rule = self._feedback.rule
        if not rule.own_feedback:
            return rule.sent(weight, weight)
        if not torch.compiler.is_compiling():
            if self._feedback.loads.stale or self._feedback.loads.unsure:
                self._feedback.refresh(self)
            if not isinstance(weight, nn.Parameter) and not self._feedback.foreign:
                self._feedback.foreign = refusals.note_foreign(self, weight)
        omega = refusals.omega_of(self, name).detach()  # whatever its requires_grad was set to
        if omega.shape != weight.shape:
            refusals.refuse_reshaped(refusals.label(self), weight, omega)
        sent = rule.sent(weight, omega)
        if not isinstance(sent, Tensor) or sent.shape != weight.shape:
            refusals.refuse_sent(refusals.label(self), rule, sent, weight)
        return sent

    def _direct(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        """y = A_θ x, made without the graph of x, joined to it by direct feedback."""
        name = f"direct_{name}"
        omega = refusals.omega_of(self, name)
        refusals.refuse_nested(self, x)
        if not torch.compiler.is_compiling():
            return function.direct(y, x, omega, self, name)
        raise RuntimeError(
            "direct feedback alignment hands the output's error around the graph, which "
            "torch.compile cannot; run it eagerly."
        )

    def _passes(self, x: Tensor) -> bool:
        """Whether the plain forward runs: nothing is sent back, or backpropagation is asked for."""
        if self._feedback.exact or not torch.is_grad_enabled():
            return True
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # which runs forward alone
            return True
        refuse_export()
        return not needs_gradient(x)


PROXY = torch._C._TorchDispatchModeKey.PROXY


def refuse_export() -> None:
    """A traced graph would hold backpropagation in place of the feedback.

    Raises:
        RuntimeError: ``torch.export``, ``make_fx`` or ``torch.jit`` traces a pass with gradients.
    """
    exporting = getattr(torch.compiler, "is_exporting", lambda: False)()
    if exporting or (
        not torch.compiler.is_compiling()
        and (torch._C._get_dispatch_mode(PROXY) is not None or torch.jit.is_tracing())
    ):
        raise RuntimeError(
            "an exported or traced graph keeps no feedback and would backpropagate; export under "
            "torch.no_grad() or within feedback.exact(), or give the model back by "
            "feedback.detach() first."
        )


def links_of(model: nn.Module) -> list[Link]:
    """What the attached modules of a model share: one link, or none where nothing is attached."""
    return list(
        {
            id(m._feedback): m._feedback for m in model.modules() if isinstance(m, AttachedModule)
        }.values()
    )


@contextmanager
def backpropagating(model: nn.Module) -> Iterator[None]:
    """Within it the model's forward and backward are the plain model's, attached or not."""
    links = links_of(model)
    before = [link.exact for link in links]
    for link in links:
        link.exact = True
        link.exacts += 1
    try:
        yield
    finally:
        for link, exact in zip(links, before, strict=True):
            link.exact = exact


class Broadcast:
    """A forward hook of the last map: its output's error is kept for all maps before it."""

    harmless = True
    """To explicit passes, which never call it."""

    def __init__(self, link: Link):
        """For the modules that share ``link``."""
        self.link = link

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The output, watched; the error of an earlier pass is forgotten."""
        self.link.error = None
        if self.link.exact or not torch.is_grad_enabled():
            return output
        if isinstance(output, tuple):
            return function.error(output[0], self.link), *output[1:]
        return function.error(output, self.link)
