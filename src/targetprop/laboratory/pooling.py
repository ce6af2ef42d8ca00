"""The routing steps of a stage: max pooling, average pooling, flattening.

With the winners of the clean pass frozen, each is a linear map P, and its matched feedback is the
exact transpose Pᵀ: overlapping max windows *sum* where they share a winner, average pooling spreads
its windows' shares. The *mirror* feedback is that of Ernoult et al. (2022): max-unpooling, which
keeps one value where windows share a winner, and replication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from targetprop.laboratory.activations import Feedback
from targetprop.maps import memory_format

aten = torch.ops.aten
Pair = tuple[int, int]
Winners = tuple[Tensor, Size, torch.memory_format]


def pair(value: int | Sequence[int]) -> Pair:
    """(value, value) of one number, or the pair itself."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def like(e: Tensor, shape: Sequence[int], form: torch.memory_format) -> Tensor:
    """A stand-in of this shape and format, batch as ``e``: all that torch's gradients here read."""
    if form == torch.contiguous_format:
        return e.new_empty(1).expand(e.shape[0], *shape)
    return torch.empty((e.shape[0], *shape), dtype=e.dtype, device=e.device, memory_format=form)


@dataclass(frozen=True)
class MaxPool:
    """Max pooling; the winners' indices are all that it saves."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    def forward(self, x: Tensor) -> tuple[Tensor, Winners]:
        """The windows' maxima; saved are (winners, shape of a sample, memory format)."""
        y, winners = F.max_pool2d(
            x,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices=True,
        )
        return y, (winners, x.shape[1:], memory_format(x))

    def jvp(self, saved: Winners, v: Tensor) -> Tensor:
        """P v: the entries of v at the winners."""
        winners = saved[0]
        return v.flatten(2).gather(2, winners.flatten(2)).view(winners.shape)

    def vjp(self, saved: Winners, e: Tensor) -> Tensor:
        """Pᵀ e: scatter to the winners, adding where windows share one."""
        winners, shape, form = saved
        geometry = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return aten.max_pool2d_with_indices_backward(
            e.contiguous(memory_format=form), like(e, shape, form), *geometry, winners
        )

    def difference(self, saved: Winners, d: Tensor) -> Tensor:
        """Pᵀ d."""
        return self.vjp(saved, d)

    def lift(self, saved: Winners, t: Tensor, kind: Feedback) -> Tensor:
        """Pᵀ t, or max-unpooling when mirrored."""
        if kind == "matched":
            return self.vjp(saved, t)
        winners, shape, _ = saved
        return F.max_unpool2d(
            t, winners, self.kernel, self.stride, self.padding, output_size=shape[-2:]
        )


@dataclass(frozen=True)
class AvgPool:
    """Average pooling with a fixed window, or adaptive to a fixed ``output`` where it is given."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    output: Pair | None = None

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The arguments of torch's function, in its order."""
        return (
            self.kernel,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor,
        )

    def apply(self, x: Tensor) -> Tensor:
        """P x."""
        return (
            F.adaptive_avg_pool2d(x, self.output)
            if self.output
            else F.avg_pool2d(x, *self.geometry)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        """P x; saved is x, which the activation before it keeps anyway."""
        return self.apply(x), (x,)

    def jvp(self, saved: tuple[Tensor], v: Tensor) -> Tensor:
        """P v."""
        return self.apply(v)

    def vjp(self, saved: tuple[Tensor], e: Tensor) -> Tensor:
        """Pᵀ e."""
        form = memory_format(saved[0])
        x, e = like(e, saved[0].shape[1:], form), e.contiguous(memory_format=form)
        if self.output:
            return aten._adaptive_avg_pool2d_backward(e, x)
        return aten.avg_pool2d_backward(e, x, *self.geometry)

    def difference(self, saved: tuple[Tensor], d: Tensor) -> Tensor:
        """Pᵀ d."""
        return self.vjp(saved, d)

    def lift(self, saved: tuple[Tensor], t: Tensor, kind: Feedback) -> Tensor:
        """x + Pᵀ(t − P x), x at the clean output; mirrored, replication to the input's size."""
        x = saved[0]
        if kind == "matched":
            return x + self.vjp(saved, t - self.apply(x))
        return F.adaptive_avg_pool2d(t, pair(x.shape[-2:]))


@dataclass(frozen=True)
class Flatten:
    """Merges the dimensions from ``start`` to ``end``."""

    start: int = 1
    end: int = -1

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Size, torch.memory_format]]:
        """Flattened x; saved are a sample's shape and memory format, which the way back needs."""
        return x.flatten(self.start, self.end), (x.shape[1:], memory_format(x))

    def jvp(self, saved: tuple[Size, torch.memory_format], v: Tensor) -> Tensor:
        """Flattened v."""
        return v.flatten(self.start, self.end)

    def vjp(self, saved: tuple[Size, torch.memory_format], e: Tensor) -> Tensor:
        """e in the shape before flattening."""
        shape, form = saved
        return e.reshape(e.shape[0], *shape).contiguous(memory_format=form)

    def difference(self, saved: tuple[Size, torch.memory_format], d: Tensor) -> Tensor:
        """d in the shape before flattening."""
        return self.vjp(saved, d)

    def lift(self, saved: tuple[Size, torch.memory_format], t: Tensor, kind: Feedback) -> Tensor:
        """t in the shape before flattening."""
        return self.vjp(saved, t)


def max_pool(module: nn.MaxPool2d) -> MaxPool:
    """The step of an ``nn.MaxPool2d``."""
    stride = module.kernel_size if module.stride is None else module.stride
    return MaxPool(
        pair(module.kernel_size),
        pair(stride),
        pair(module.padding),
        pair(module.dilation),
        module.ceil_mode,
    )


def avg_pool(module: nn.AvgPool2d) -> AvgPool:
    """The step of an ``nn.AvgPool2d``."""
    kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    return AvgPool(
        kernel, stride, padding, module.ceil_mode, module.count_include_pad, module.divisor_override
    )


def adaptive_avg_pool(module: nn.AdaptiveAvgPool2d) -> AvgPool:
    """The step of an ``nn.AdaptiveAvgPool2d`` with both output sizes given."""
    size: Any = module.output_size
    if size is None or (isinstance(size, tuple) and None in size):
        raise ValueError(
            f"adaptive pooling to {size} keeps an input size; give both output sizes as numbers."
        )
    return AvgPool(output=pair(size))


def flatten(module: nn.Flatten) -> Flatten:
    """The step of an ``nn.Flatten`` that keeps the batch dimension."""
    if module.start_dim == 0:
        raise ValueError("nn.Flatten(start_dim=0) merges the batch; start at dimension 1.")
    return Flatten(module.start_dim, module.end_dim)


MODULES: dict[type[nn.Module], Any] = {
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: avg_pool,
    nn.AdaptiveAvgPool2d: adaptive_avg_pool,
    nn.Flatten: flatten,
}
