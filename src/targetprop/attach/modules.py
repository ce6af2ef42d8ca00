"""The maps of a model in place: class name, parameters and hooks stay; ``forward`` runs through ω.

A module of a known kind gets a subclass of its own class, so ``isinstance``, ``print``, hooks,
``state_dict`` and a user's subclass stay what they were; ω is one more parameter of the module.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targetprop.attach import function
from targetprop.attach.link import Attached
from targetprop.laboratory.activations import MODULES as ACTIVATIONS
from targetprop.maps import MAPS, AutogradMap, along


class AttachedLinear(Attached):
    """x θᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            y = F.linear(input.detach(), weight, self.bias)
            return self._direct(y, input, "feedback_weight")
        return function.linear(input, weight, self.bias, self._sent(weight, "feedback_weight"))


class AttachedConv1D(Attached):
    """The transposed linear map of ``transformers``: θ is (inputs, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(x):
            return super().forward(x)
        weight = self.weight
        if self._feedback.rule.direct:
            y = F.linear(x.detach(), weight.T, self.bias)
            return self._direct(y, x, "feedback_weight")
        return function.linear(x, weight.T, self.bias, self._sent(weight, "feedback_weight").T)


class AttachedConvolution(Attached):
    """``Conv1d``, ``Conv2d`` and ``Conv3d``, every padding mode."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            y = self._conv_forward(input.detach(), weight, self.bias)
            return self._direct(y, input, "feedback_weight")
        dims = len(self.kernel_size)
        x = input if input.dim() == dims + 2 else input.unsqueeze(0)
        x, padding = padded(self, x)
        geometry = (self.stride, padding, self.dilation, False, (0,) * dims, self.groups)
        y = function.convolution(
            x, weight, self.bias, self._sent(weight, "feedback_weight"), *geometry
        )
        return y if input.dim() == dims + 2 else y.squeeze(0)


def padded(conv: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x and the symmetric zero padding left to the convolution; autograd makes the others here."""
    none = (0,) * len(conv.kernel_size)
    if conv.padding_mode != "zeros":
        return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), none
    if conv.padding == "valid":
        return x, none
    if conv.padding != "same":
        return x, conv.padding
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if all(size % 2 == 0 for size in total):
        return x, tuple(size // 2 for size in total)
    return F.pad(
        x, [side for size in reversed(total) for side in (size // 2, size - size // 2)]
    ), none


class AttachedTransposedConvolution(Attached):
    """``ConvTranspose1d``, ``ConvTranspose2d`` and ``ConvTranspose3d``."""

    def forward(self, input: Tensor, output_size=None) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input, output_size)
        weight = self.weight
        if self._feedback.rule.direct:
            y = super().forward(input.detach(), output_size)
            return self._direct(y, input, "feedback_weight")
        dims = len(self.kernel_size)
        extra = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        x = input if input.dim() == dims + 2 else input.unsqueeze(0)
        geometry = (self.stride, self.padding, self.dilation, True, tuple(extra), self.groups)
        y = function.convolution(
            x, weight, self.bias, self._sent(weight, "feedback_weight"), *geometry
        )
        return y if input.dim() == dims + 2 else y.squeeze(0)


class AttachedRegistered(Attached):
    """A user's own bilinear map, as ``targetprop.register`` told it."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module; the shape of its input is kept for the probes."""
        if not torch.compiler.is_compiling():
            self._feedback_shape = tuple(input.shape[1:])
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            return self._direct(super().forward(input.detach()), input, "feedback_weight")
        own = map_of(self)
        y = function.bilinear(input, weight, self._sent(weight, "feedback_weight"), own.function)
        bias = getattr(self, "bias", None)
        return y if bias is None else y + along(bias.to(y.dtype), own.bias_dim, y.dim())


def map_of(module: Attached) -> AutogradMap:
    """The registered map of an attached module."""
    known: Any = registered(module)
    made: Any = MAPS[known](module)
    return made


@torch.no_grad()
def refuse_other(module: Attached, x: Tensor) -> None:
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
    if isinstance(module, Attached):
        return registered_base(module._feedback_base)
    return None if "forward" in module.__dict__ else registered_base(type(module))


def registered_base(own: type[nn.Module]) -> type[nn.Module] | None:
    """The registered class among the bases of ``own`` whose ``forward`` it has."""
    known = (base for base in own.__mro__ if base in MAPS and base not in (nn.Conv2d, nn.Linear))
    return next((base for base in known if own.forward is base.forward), None)


class AttachedNorm(Attached):
    """A normalisation whose gain γ sends e down through feedback gains of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module, γ and β applied apart."""
        if self._passes(input) or self.weight is None:
            return super().forward(input)
        weight, bias = self.weight, getattr(self, "bias", None)
        with without_affine(self):
            normalised = super().forward(input)
        if isinstance(self, (nn.LayerNorm, nn.RMSNorm)):
            shape = self.normalized_shape
        else:
            axis = input.dim() - self._feedback_positions(input)
            shape = [1] * axis + [-1] + [1] * (input.dim() - axis - 1)
        shaped = [1] * (input.dim() - len(shape)) + list(shape)
        gain, omega = (
            w.to(normalised.dtype).view(shaped)
            for w in (weight, self._sent(weight, "feedback_gain"))
        )
        y = function.gain(normalised, gain, omega)
        return y if bias is None else y + bias.to(y.dtype).view(shaped)

    def _feedback_positions(self, input: Tensor) -> int:
        """Dimensions from the channels to the last: instance norms take an unbatched input too."""
        if isinstance(self, nn.modules.instancenorm._InstanceNorm):
            return self._get_no_batch_dim()
        return input.dim() - 1


class without_affine:
    """Within it a normalisation has neither gain nor shift: its forward only normalises."""

    def __init__(self, module: nn.Module):
        """For ``module``."""
        self.module = module

    def __enter__(self) -> None:
        """Hide them."""
        parameters = self.module._parameters
        self.kept = {name: parameters[name] for name in ("weight", "bias") if name in parameters}
        for name in self.kept:
            parameters[name] = None

    def __exit__(self, *error: object) -> None:
        """Show them again."""
        self.module._parameters.update(self.kept)


class AttachedActivation(Attached):
    """An activation that sends the difference of its feedback activation at a finite nudge."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        beta = self._feedback.beta
        if self._passes(input) or beta is None:
            return super().forward(input)
        kind = next(base for base in self._feedback_base.__mro__ if base in ACTIVATIONS)
        return function.difference(input, ACTIVATIONS[kind](self), beta)
