"""Maps of the user's own, as ``targetprop.register`` was told them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from targetprop.attach import function
from targetprop.attach.link import AttachedModule
from targetprop.attach.modules import one_input
from targetprop.maps import MAPS, AutogradMap, along, is_feedback


class AttachedRegistered(AttachedModule):
    """A user's own bilinear map, as ``targetprop.register`` told it."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the plain module; the shape of its input is kept for the probes."""
        input = one_input(self, args, kwargs)
        if not torch.compiler.is_compiling():
            self._feedback_shape = tuple(input.shape[1:])
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            return self._direct(super().forward(input.detach()), input, "feedback_weight")
        own = map_of(self)
        y = function.bilinear(input, weight, self._sent(weight, "feedback_weight"), own.function)
        if others(self):  # learn as autograd has it, and change neither the value nor the signal
            local = own.function(*function.autocast(input.detach(), weight.detach()))
            y = y + (local - local.detach())
        bias = getattr(self, "bias", None)
        return y if bias is None else y + along(bias.to(y.dtype), own.bias_dim, y.dim())


def others(module: nn.Module) -> list[nn.Parameter]:
    """What a registered module learns beside its weight and bias: a scale, say."""
    known = ("weight", "bias")
    return [
        parameter
        for name, parameter in module.named_parameters()
        if name not in known and parameter.requires_grad and not is_feedback(name)
    ]


def map_of(module: AttachedModule) -> AutogradMap:
    """The registered map of an attached module."""
    known: Any = registered(module)
    made: Any = MAPS[known](module)
    return made


@torch.no_grad()
def refuse_other(module: AttachedModule, x: Tensor) -> None:
    """Refuse a registered map that is not what its module computes.

    Raises:
        ValueError: its forward and the function that ``targetprop.register`` was given differ at x.
    """
    y = module._feedback_base.forward(module, x)
    if (
        map_of(module)
        .apply(x, module.weight, getattr(module, "bias", None))
        .allclose(y, rtol=1e-2, atol=1e-2 * float(y.abs().max()))
    ):
        return
    raise ValueError(
        f"{type(module).__name__} computes another map than the function that targetprop.register "
        "was given for it; give the function (x, w) that its forward applies, without the bias."
    )


def registered(module: nn.Module) -> type[nn.Module] | None:
    """The type under which ``targetprop.register`` knows what the module computes, or None."""
    if isinstance(module, AttachedModule):
        return registered_base(module._feedback_base)
    return None if "forward" in module.__dict__ else registered_base(type(module))


def registered_base(own: type[nn.Module]) -> type[nn.Module] | None:
    """The registered class among the bases of ``own`` whose ``forward`` it has."""
    known = (base for base in own.__mro__ if base in MAPS and base not in (nn.Conv2d, nn.Linear))
    return next((base for base in known if own.forward is base.forward), None)
