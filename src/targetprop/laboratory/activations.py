"""Activations ρ, their slope ρ′, and the two feedback activations ψ of target propagation.

The *matched* feedback activation of ρ is ψ(y) = ∫₀ʸ ρ′(ρ⁻¹(u)) du, so that ψ′(ρ(c)) = ρ′(c) holds
while ψ reads the layer's output only. Outside the range of ρ it continues as a constant: a target
beyond what ρ can reach is cut off there, and large targets cannot diverge. Where ρ has no inverse
(GELU, SiLU, ...), ψ is the linear gate r ↦ ρ′(c) ⊙ r, c kept by the forward pass.

The *mirror* feedback activation (Ernoult et al. 2022) is ρ itself, applied once more to the output.
Its slope at y = ρ(c) is ρ′(y), not ρ′(c), which is why it cannot satisfy the Jacobian matching
condition exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Feedback = Literal["matched", "mirror"]
Saved = tuple[Tensor | None, Tensor]
aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise activation, one step of a :class:`~targetprop.laboratory.stages.Stage`.

    Attributes:
        name: ``"elu"``, ``"relu"``, ...
        rho: c ↦ ρ(c).
        slope: (e, c, y) ↦ ρ′(c) ⊙ e, with y = ρ(c); ``c`` is None unless ``needs_input``.
        matched: (r, c, y) ↦ ψ(r), matched, at target r of a unit whose clean output is y.
        shift: (d, c, y) ↦ ψ(y + d) − ψ(y), written out so that a tiny d does not drown in rounding.
        monotone: ρ never decreases, so max pooling may choose its winners before or after ρ.
        needs_input: ρ′ cannot be told from y alone, so the forward pass keeps c.
        off_zero: ρ(0) is not 0.
        keeps_output: torch's own ρ keeps y for its backward, not c: what an ``nn.Module`` lets its
            user change in place afterwards.
    """

    name: str
    rho: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    matched: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    shift: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    monotone: bool = True
    needs_input: bool = False
    off_zero: bool = False
    keeps_output: bool = False

    def forward(self, c: Tensor) -> tuple[Tensor, Saved]:
        """ρ(c) and what the way back needs of this pass."""
        y = self.rho(c)
        return y, (c if self.needs_input else None, y)

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        """ρ′(c) ⊙ v."""
        return self.slope(v, *saved)

    # The Jacobian of an elementwise function is diagonal, hence its own transpose.
    vjp = jvp

    def difference(self, saved: Saved, d: Tensor) -> Tensor:
        """ψ(y + d) − ψ(y), ψ matched."""
        return self.shift(d, *saved)

    def lift(self, saved: Saved, t: Tensor, kind: Feedback) -> Tensor:
        """ψ(t), matched or mirror."""
        return self.rho(t) if kind == "mirror" else self.matched(t, *saved)


def split(d: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step from y to y + d parted at 0: (above, below, min(y, 0)); above + below is d exactly."""
    below_zero = y.clamp_max(0.0)
    below = torch.minimum(d + y.clamp_min(0.0), -below_zero)
    return d - below, below, below_zero


def identity() -> Activation:
    """ρ(c) = c, ψ(y) = y."""
    return Activation(
        "identity", lambda c: c, lambda e, c, y: e, lambda r, c, y: r, lambda d, c, y: d
    )


def elu(alpha: float = 1.0) -> Activation:
    """ELU; ψ(y) = y above 0, αy + y²/2 on [−α, 0], constant below."""

    def matched(r: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        low = r.clamp(-alpha, 0.0)
        return r.clamp_min(0.0) + low * (alpha + 0.5 * low)

    def shift(d: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        above, below, low = split(torch.maximum(d, -alpha - y), y)
        return torch.addcmul(above, below, torch.add(low, below, alpha=0.5).add_(alpha))

    def slope(e: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        return aten.elu_backward(e, alpha, 1.0, 1.0, True, y)

    return Activation("elu", lambda c: F.elu(c, alpha), slope, matched, shift)


def relu() -> Activation:
    """ReLU; ψ(y) = max(y, 0) for active units; a silent one, of slope 0, passes no target on."""

    def shift(d: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        # max(d, −y) of active units, in one array: exactly d wherever the unit stays active
        return aten.threshold_backward(d, y, 0.0).neg_().clamp_max_(y).neg_()

    return Activation(
        "relu",
        F.relu,
        lambda e, c, y: aten.threshold_backward(e, y, 0.0),
        lambda r, c, y: aten.threshold_backward(r.clamp_min(0.0), y, 0.0),
        shift,
        keeps_output=True,
    )


def leaky_relu(slope: float = 0.01) -> Activation:
    """Leaky ReLU, which is its own matched feedback."""
    if not slope > 0:
        raise ValueError(f"leaky ReLU slope {slope} is not positive; use 'relu' for a slope of 0.")

    def shift(d: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        above, below, _ = split(d, y)
        return torch.add(above, below, alpha=slope)

    return Activation(
        "leaky_relu",
        lambda c: F.leaky_relu(c, slope),
        lambda e, c, y: aten.leaky_relu_backward(e, y, slope, True),
        lambda r, c, y: F.leaky_relu(r, slope),
        shift,
    )


def tanh() -> Activation:
    """tanh; ψ(y) = y − y³/3 on [−1, 1]."""

    def matched(r: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        r = r.clamp(-1.0, 1.0)
        return r * (1.0 - r * r / 3.0)

    def shift(d: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        d = d.clamp(-1.0 - y, 1.0 - y)
        return d * (1.0 - y * y - d * (y + d / 3.0))

    return Activation(
        "tanh",
        torch.tanh,
        lambda e, c, y: aten.tanh_backward(e, y),
        matched,
        shift,
        keeps_output=True,
    )


def sigmoid() -> Activation:
    """Logistic sigmoid; ψ(y) = y²/2 − y³/3 on [0, 1]."""

    def matched(r: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        r = r.clamp(0.0, 1.0)
        return r * r * (0.5 - r / 3.0)

    def shift(d: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        d = d.clamp(-y, 1.0 - y)
        return d * (y - y * y + d * (0.5 - y - d / 3.0))

    return Activation(
        "sigmoid",
        torch.sigmoid,
        lambda e, c, y: aten.sigmoid_backward(e, y),
        matched,
        shift,
        off_zero=True,
        keeps_output=True,
    )


def gated(
    name: str, rho: Callable[[Tensor], Tensor], monotone: bool = False, off_zero: bool = False
) -> Activation:
    """Any differentiable elementwise ρ, fed back by the gate ψ(r) = ρ′(c) ⊙ r, ρ′ by autograd."""

    def slope(e: Tensor, c: Tensor | None, y: Tensor) -> Tensor:
        if c is None:
            raise ValueError(f"activation '{name}' needs the pre-activation; its layer kept none.")
        # A graph is kept only for who differentiates once more.
        return torch.func.vjp(rho, c if torch.is_grad_enabled() else c.detach())[1](e)[0]

    return Activation(
        name, rho, slope, slope, slope, monotone=monotone, needs_input=True, off_zero=off_zero
    )


def gelu(approximate: str = "none") -> Activation:
    """GELU, fed back by gating."""
    return gated("gelu", lambda c: F.gelu(c, approximate=approximate))


def silu() -> Activation:
    """SiLU (swish), fed back by gating."""
    return gated("silu", F.silu)


def softplus(sharpness: float = 1.0, threshold: float = 20.0) -> Activation:
    """log(1 + exp(βc))/β, linear where βc is over the threshold, fed back by gating."""
    return gated(
        "softplus", lambda c: F.softplus(c, sharpness, threshold), monotone=True, off_zero=True
    )


MODULES: dict[type[nn.Module], Callable[..., Activation]] = {
    nn.Identity: lambda module: identity(),
    nn.ELU: lambda module: elu(module.alpha),
    nn.ReLU: lambda module: relu(),
    nn.LeakyReLU: lambda module: leaky_relu(module.negative_slope),
    nn.Tanh: lambda module: tanh(),
    nn.Sigmoid: lambda module: sigmoid(),
    nn.GELU: lambda module: gelu(module.approximate),
    nn.SiLU: lambda module: silu(),
    nn.Softplus: lambda module: softplus(module.beta, module.threshold),
    nn.Mish: lambda module: gated("mish", F.mish),
    nn.SELU: lambda module: gated("selu", F.selu, monotone=True),
    nn.CELU: lambda module: gated("celu", lambda c: F.celu(c, module.alpha), monotone=True),
    nn.Hardswish: lambda module: gated("hardswish", F.hardswish),
    nn.Softsign: lambda module: gated("softsign", F.softsign, monotone=True),
}
