"""The maps of a model in place: class name, parameters and hooks stay; ``forward`` runs through ω.

A module of a known kind gets a subclass of its own class, so ``isinstance``, ``print``, hooks,
``state_dict`` and a user's subclass stay what they were; ω is one more parameter of the module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targetprop.attach import function
from targetprop.attach.difference import difference
from targetprop.attach.link import AttachedModule
from targetprop.attach.refusals import label
from targetprop.laboratory.activations import MODULES as ACTIVATIONS


class AttachedLinear(AttachedModule):
    """x θᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            y = F.linear(input.detach(), weight, self.bias)
            return self._direct(y, input, "feedback_weight")
        omega = self._sent(weight, "feedback_weight")
        return by_values(
            self, input, lambda values: function.linear(values, weight, self.bias, omega)
        )


class AttachedConv1D(AttachedModule):
    """The transposed linear map of ``transformers``: θ is (inputs, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(x):
            return super().forward(x)
        weight = self.weight
        if self._feedback.rule.direct:
            y = F.linear(x.detach(), weight.T, self.bias)
            return self._direct(y, x, "feedback_weight")
        omega = self._sent(weight, "feedback_weight")
        return by_values(
            self, x, lambda values: function.linear(values, weight.T, self.bias, omega.T)
        )


def by_values(module: AttachedModule, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """``act(x)`` for what acts on features, the last dimension; of a jagged x on its values."""
    if not x.is_nested:
        return act(x)
    if x.layout != torch.jagged:
        raise TypeError(
            f"{label(module)} with feedback takes nested tensors of layout torch.jagged, got "
            f"{x.layout}; build them with layout=torch.jagged or pad them to one length."
        )
    jagged: Any = x
    return torch.nested.nested_tensor_from_jagged(
        act(jagged.values()), jagged.offsets(), jagged.lengths(), jagged_dim=jagged._ragged_idx
    )


class AttachedConvolution(AttachedModule):
    """``Conv1d``, ``Conv2d`` and ``Conv3d``, every padding mode."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input)
        if self._feedback.rule.direct:
            y = self._conv_forward(input.detach(), self.weight, self.bias)
            return self._direct(y, input, "feedback_weight")
        none = (0,) * len(self.kernel_size)
        return convolved(self, input, lambda x: padded(self, x), False, none)


def convolved(
    conv: Any,
    input: Tensor,
    pad: Callable[[Tensor], tuple[Tensor, tuple[int, ...]]],
    transposed: bool,
    extra: tuple[int, ...],
) -> Tensor:
    """The convolution of an input, which may have no batch dimension, sending back through ω.

    Args:
        conv: the module.
        input: (batch, channels, *positions) or (channels, *positions).
        pad: x ↦ x and the symmetric zero padding left to the convolution.
        transposed: whether the convolution is.
        extra: its output padding.
    """
    single = input.dim() == len(conv.kernel_size) + 1
    x, padding = pad(input.unsqueeze(0) if single else input)
    weight = conv.weight
    omega = conv._sent(weight, "feedback_weight")
    geometry = (conv.stride, padding, conv.dilation, transposed, extra, conv.groups)
    y = function.convolution(x, weight, conv.bias, omega, *geometry)
    return y.squeeze(0) if single else y


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


class AttachedTransposedConvolution(AttachedModule):
    """``ConvTranspose1d``, ``ConvTranspose2d`` and ``ConvTranspose3d``."""

    def forward(self, input: Tensor, output_size=None) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input, output_size)
        if self._feedback.rule.direct:
            y = super().forward(input.detach(), output_size)
            return self._direct(y, input, "feedback_weight")
        dims = len(self.kernel_size)
        extra = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        return convolved(self, input, lambda x: (x, self.padding), True, tuple(extra))


def one_input(module: AttachedModule, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What a module is called with, under any name that its class gives it.

    Raises:
        TypeError: there is more than one argument, or a name that the class does not know.
    """
    if kwargs:
        own = inspect.signature(module._feedback_base.forward)
        args = tuple(own.bind(module, *args, **kwargs).arguments.values())[1:]
    if len(args) != 1:
        raise TypeError(
            f"{label(module)} with feedback takes one input, got {len(args)}; name it in skip= of "
            "attach, or keep the others in the module."
        )
    return args[0]


class AttachedNorm(AttachedModule):
    """A normalisation whose gain γ sends e down through feedback gains of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the plain module, γ and β applied apart."""
        input = one_input(self, args, kwargs)
        if self._passes(input) or self.weight is None:
            return super().forward(input)
        if "weight" not in self._parameters:
            raise RuntimeError(
                f"the gain of {label(self)} is computed, by a parametrisation say, so it can have "
                "no feedback gain; leave gains='learned' out of attach, or skip it."
            )
        weight, bias = self.weight, getattr(self, "bias", None)
        with without_affine(self):
            normalised = super().forward(input)
        if isinstance(self, (nn.LayerNorm, nn.RMSNorm)):
            shape = self.normalized_shape
        else:
            axis = input.dim() - self._feedback_positions(input)
            shape = [1] * axis + [-1] + [1] * (input.dim() - axis - 1)
        dims = input.dim() - input.is_nested  # the values of a jagged tensor have one less
        shaped = [1] * (dims - len(shape)) + list(shape)
        gain, omega = (
            w.to(normalised.dtype).view(shaped)
            for w in (weight, self._sent(weight, "feedback_gain"))
        )

        def scaled(values: Tensor) -> Tensor:
            y = function.gain(values, gain, omega)
            return y if bias is None else y + bias.to(y.dtype).view(shaped)

        return by_values(self, normalised, scaled)

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


class AttachedActivation(AttachedModule):
    """An activation that sends the difference of its feedback activation at a finite nudge."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        beta = self._feedback.beta
        if self._passes(input) or beta is None:
            return super().forward(input)
        kind = next(base for base in self._feedback_base.__mro__ if base in ACTIVATIONS)
        rho = ACTIVATIONS[kind](self)
        nudge = beta * (len(input) if input.dim() else 1)
        inplace = getattr(self, "inplace", False)
        x = input if rho.keeps_output or not inplace else input.clone()
        y = by_values(self, x, lambda values: difference(values, rho, nudge))
        return input.copy_(y) if inplace else y
