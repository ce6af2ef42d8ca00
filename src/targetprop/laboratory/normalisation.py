"""Batch normalisation as a step of a stage, exact in training and in evaluation.

y = γ ĉ + b, ĉ = (c − μ)/√(v + ε). With running statistics the Jacobian is the scale γ/√(v + ε). In
training μ and v are the batch's and move with c (Ioffe and Szegedy 2015); over a channel's N values

    J v  =  γ/√(v + ε) · (v − mean(v) − ĉ mean(ĉ v)),

which is symmetric, so that it is its own transpose and its own matched feedback. γ and b learn from
the same local error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.laboratory.activations import Feedback
from targetprop.maps import along, sum_to_bias

Kept = tuple[Tensor, Tensor, Tensor, bool]
ParameterGradients = list[tuple[nn.Parameter, Tensor]]


@dataclass(frozen=True)
class BatchNorm:
    """An ``nn.BatchNorm1d`` or ``2d`` as a step; it keeps its parameters and running statistics."""

    module: Any

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        """The normalised x; saved: x, μ, 1/√(v + ε). Running statistics move in ``observe``."""
        m = self.module
        mean: Tensor
        inverse: Tensor
        moving = m.training or m.running_mean is None
        if not m.training and m.running_mean is not None:
            mean, inverse = m.running_mean, (m.running_var + m.eps).rsqrt()
        else:
            dims = [i for i in range(x.dim()) if i != 1]
            variance, mean = torch.var_mean(x, dims, correction=0)
            inverse = (variance + m.eps).rsqrt()
        scale = inverse if m.weight is None else inverse * m.weight
        shift = -mean * scale if m.bias is None else m.bias - mean * scale
        return torch.addcmul(along(shift, 1, x.dim()), x, along(scale, 1, x.dim())), (
            x,
            mean,
            inverse,
            moving,
        )

    def observe(self, saved: Kept) -> None:
        """Move the running statistics towards a training pass's, as the module itself would."""
        m = self.module
        if not m.training or m.running_mean is None:
            return
        x, mean, inverse, _ = saved
        count = x.numel() / x.shape[1]
        with torch.no_grad():
            m.num_batches_tracked += 1
            rate = 1 / m.num_batches_tracked if m.momentum is None else m.momentum
            m.running_mean.lerp_(mean.detach().to(m.running_mean.dtype), rate)
            variance = inverse.detach().pow(-2) - m.eps
            m.running_var.lerp_(
                (variance * count / max(1.0, count - 1)).to(m.running_var.dtype), rate
            )

    def jvp(self, saved: Kept, v: Tensor) -> Tensor:
        """J v, with the statistics moving in training."""
        x, mean, inverse, moving = saved
        scale = inverse if self.module.weight is None else inverse * self.module.weight
        if moving:
            dims = [i for i in range(v.dim()) if i != 1]
            normalised = (x - along(mean, 1, x.dim())) * along(inverse, 1, x.dim())
            v = (
                v
                - v.mean(dims, keepdim=True)
                - normalised * (normalised * v).mean(dims, keepdim=True)
            )
        return v * along(scale, 1, v.dim())

    # Symmetric: its own transpose, and its own matched feedback.
    vjp = difference = jvp

    def lift(self, saved: Kept, t: Tensor, kind: Feedback) -> Tensor:
        """The same; constants cancel in differences."""
        return self.jvp(saved, t)

    def gradients(self, saved: Kept, e: Tensor) -> ParameterGradients:
        """Those of ⟨e, y⟩ on γ and b."""
        x, mean, inverse, _ = saved
        m = self.module
        if m.weight is None:
            return []
        total = sum_to_bias(e, 1)
        return [(m.weight, (sum_to_bias(e * x, 1) - mean * total) * inverse), (m.bias, total)]


MODULES: dict[type[nn.Module], Any] = {nn.BatchNorm1d: BatchNorm, nn.BatchNorm2d: BatchNorm}
