"""Linear maps A_w x and the two transposes that learning needs, as plain operators without a graph.

A map is bilinear in its input x and its weight w. To pair layers three products are enough:

* ``apply(x, w, b)``: A_w x + b,
* ``transpose(e, w, shape)``: A_wᵀ e, an array of ``shape`` like x,
* ``correlate(e, x, shape)``: ∂⟨e, A_w x⟩/∂w of ``shape`` like w, summed over batch and positions.

``Conv2dMap`` and ``DenseMap`` call the operators of torch; ``AutogradMap`` derives both transposes
of any bilinear function, which is how a user's own layer type joins (see ``targetprop.register``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad


class LinearMap(Protocol):
    """(x, w) ↦ A_w x, bilinear, and its two transposes; a bias runs along output ``bias_dim``."""

    @property
    def bias_dim(self) -> int:
        """The output dimension the bias runs along."""
        ...

    def apply(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """A_w x + b."""
        ...

    def transpose(self, e: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        """A_wᵀ e, shaped ``shape``."""
        ...

    def correlate(self, e: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """∂⟨e, A_w x⟩/∂w, shaped ``shape``."""
        ...


FEW_POSITIONS, MANY_PAIRS = 36, 128 * 256
"""On a CPU ``Conv2dMap.correlate`` goes tap by tap up to so many outputs per channel, from so many
pairs of channels on; chosen by measurement.
"""


@dataclass(frozen=True)
class Conv2dMap:
    """Zero-padded 2-d convolution; w is (out, in / groups, kh, kw)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias_dim: int = 1

    @property
    def geometry(self) -> tuple:
        """Stride, padding, dilation and groups, in the order torch's functions take them."""
        return self.stride, self.padding, self.dilation, self.groups

    def apply(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """A_w x + b."""
        return F.conv2d(x, w, b, *self.geometry)

    def transpose(self, e: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        """A_wᵀ e: the transposed convolution, every output padding included."""
        # torch reads only x's shape, but copies one that is not dense: give memory nobody writes.
        last = torch.channels_last in (memory_format(e), memory_format(w))
        form = torch.channels_last if last else torch.contiguous_format
        x = torch.empty(tuple(shape), dtype=e.dtype, device=e.device, memory_format=form)
        geometry = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        return torch.ops.aten.convolution_backward(e, x, w, None, *geometry, (True, False, False))[
            0
        ]

    def correlate(self, e: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """∂⟨e, A_w x⟩/∂w."""
        few, wide = e.shape[2] * e.shape[3] <= FEW_POSITIONS, shape[0] * shape[1] >= MANY_PAIRS
        if few and wide and x.device.type == "cpu" and self.groups == 1:
            return self.correlate_taps(e, x, shape)
        return grad.conv2d_weight(x, shape, e, *self.geometry)

    def correlate_taps(self, e: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same as one matrix product a tap, over the positions where that tap meets no padding.

        On a CPU up to several times faster than torch's for wide layers on images of a few pixels
        (docs/performance.md).
        """
        gradient = torch.zeros(tuple(shape), dtype=e.dtype, device=e.device).contiguous(
            memory_format=memory_format(x)
        )
        rows, columns = (
            [reach(tap, *sizes) for tap in range(shape[2 + axis])]
            for axis, sizes in enumerate(
                zip(self.stride, self.padding, self.dilation, x.shape[2:], e.shape[2:], strict=True)
            )
        )
        e, x = e.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
        for i, (y, top) in enumerate(rows):
            for j, (z, left) in enumerate(columns):
                gradient[:, :, i, j] = e[:, y, z].reshape(-1, shape[0]).T @ x[:, top, left].reshape(
                    -1, shape[1]
                )
        return gradient


def reach(
    tap: int, stride: int, padding: int, dilation: int, size: int, outputs: int
) -> tuple[slice, slice]:
    """The outputs along one axis for which kernel tap ``tap`` meets an input, and those inputs."""
    offset = tap * dilation - padding  # the input under the tap at output 0
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    count = max(0, last - first + 1)
    start = first * stride + offset
    return slice(first, first + count), slice(start, start + count * stride, stride)


@dataclass(frozen=True)
class DenseMap:
    """x ↦ x wᵀ over the last dimension; w is (out, in)."""

    bias_dim: int = -1

    def apply(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """A_w x + b."""
        return F.linear(x, w, b)

    def transpose(self, e: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        """A_wᵀ e."""
        return e @ w

    def correlate(self, e: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """∂⟨e, A_w x⟩/∂w."""
        return e.flatten(0, -2).T @ x.flatten(0, -2)


@dataclass(frozen=True)
class AutogradMap:
    """Any function bilinear in (x, w); both transposes are taken by autograd.

    Attributes:
        function: (x, w) ↦ A_w x, without bias, linear in each argument.
        bias_dim: the dimension of the output along which a bias of the wrapped module lies.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    bias_dim: int = 1

    def apply(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """A_w x + b."""
        c = self.function(x, w)
        return c if b is None else c + along(b, self.bias_dim, c.dim())

    def transpose(self, e: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        """A_wᵀ e, from the vector-Jacobian product at x = 0."""
        w = w.detach()
        return torch.func.vjp(lambda x: self.function(x, w), e.new_zeros(tuple(shape)))[1](e)[0]

    def correlate(self, e: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """∂⟨e, A_w x⟩/∂w, from the vector-Jacobian product at w = 0."""
        return torch.func.vjp(lambda w: self.function(x, w), e.new_zeros(tuple(shape)))[1](e)[0]


@dataclass(frozen=True)
class Reduced:
    """Another map's products in a shorter float format, such as bfloat16; weights keep theirs.

    Attributes:
        inner: the map.
        dtype: of operands and results; sums run as wide as the device's kernels sum.
    """

    inner: LinearMap
    dtype: torch.dtype

    @property
    def bias_dim(self) -> int:
        """As that of the map."""
        return self.inner.bias_dim

    def apply(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """A_w x + b."""
        return self.inner.apply(
            x.to(self.dtype), w.to(self.dtype), None if b is None else b.to(self.dtype)
        )

    def transpose(self, e: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        """A_wᵀ e, shaped ``shape``."""
        return self.inner.transpose(e.to(self.dtype), w.to(self.dtype), shape)

    def correlate(self, e: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """∂⟨e, A_w x⟩/∂w, shaped ``shape``."""
        return self.inner.correlate(e.to(self.dtype), x.to(self.dtype), shape)


def is_feedback(key: str) -> bool:
    """Whether the name of a parameter is that of feedback weights, biases or gains."""
    return key.endswith(("feedback_weight", "feedback_bias", "feedback_gain"))


def memory_format(x: Tensor) -> torch.memory_format:
    """``torch.channels_last`` for an image with channels innermost, else ``contiguous_format``."""
    last = (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.channels_last if last else torch.contiguous_format


def along(b: Tensor, dim: int, dims: int) -> Tensor:
    """The vector b, to broadcast along dimension ``dim`` of an array with ``dims`` dimensions."""
    return b.view([-1 if i == dim % dims else 1 for i in range(dims)])


def sum_to_bias(e: Tensor, dim: int) -> Tensor:
    """Sum of e over every dimension but ``dim``: the transpose of adding a bias."""
    return e.sum([i for i in range(e.dim()) if i != dim % e.dim()])


def conv2d(module: nn.Conv2d) -> LinearMap:
    """A convolution's map; by autograd for circular, reflected, asymmetric "same" padding."""
    stride: Any = module.stride
    dilation: Any = module.dilation
    padding: Any = module.padding
    groups = module.groups
    if module.padding_mode != "zeros":
        pad, mode = list(module._reversed_padding_repeated_twice), module.padding_mode
        return AutogradMap(
            lambda x, w: F.conv2d(F.pad(x, pad, mode=mode), w, None, stride, 0, dilation, groups)
        )
    if module.padding == "same":
        if any(d * (k - 1) % 2 for d, k in zip(dilation, module.kernel_size, strict=True)):
            return AutogradMap(lambda x, w: F.conv2d(x, w, None, stride, "same", dilation, groups))
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, module.kernel_size, strict=True))
    else:
        padding = (0, 0) if padding == "valid" else padding
    return Conv2dMap(stride, padding, dilation, groups)


MAPS: dict[type[nn.Module], Callable[..., LinearMap]] = {
    nn.Conv2d: conv2d,
    nn.Linear: lambda module: DenseMap(),
}


def register(
    module_type: type[nn.Module],
    make: Callable[..., Callable[[Tensor, Tensor], Tensor]],
    bias_dim: int = 1,
):
    """Let ``targetprop.pair`` and ``targetprop.attach`` take modules of a type of yours.

    ``attach`` knows torch's own layers with a linear map, and keeps to what it knows of those.

    Args:
        module_type: a module with a ``weight`` and an optional ``bias``.
        make: module ↦ its function (x, w) ↦ A_w x, without the bias, linear in x and in w.
        bias_dim: the output dimension the bias runs along.

    Example:
        >>> import torch, targetprop as tp
        >>> class Masked(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return torch.nn.functional.linear(x, self.weight.tril(), self.bias)
        >>> tp.register(Masked, lambda module: lambda x, w: x @ w.tril().T)
        >>> model = torch.nn.Sequential(Masked(8, 8), torch.nn.Tanh(), Masked(8, 8))
        >>> feedback = tp.attach(model, torch.randn(2, 8))
        >>> max(feedback.mismatch().values()) < 0.01
        True
    """
    MAPS[module_type] = lambda module: AutogradMap(make(module), bias_dim)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The type of a module, of an attached one that it had before."""
    return getattr(module, "_feedback_base", type(module))


def map_of(module: nn.Module) -> LinearMap | None:
    """The linear map of ``module``, or None where its exact type is not registered."""
    make = MAPS.get(plain_type(module))
    return None if make is None else make(module)
