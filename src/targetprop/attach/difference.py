"""The autograd function of an activation at a finite nudge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import Function

from targetprop.attach.function import run
from targetprop.laboratory.activations import Activation


class _Difference(Function):
    @staticmethod
    def forward(x, activation, beta):
        return activation.forward(x)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.activation, ctx.nudge = inputs
        # What torch's own ρ keeps: the other one may change in place.
        ctx.save_for_backward(output if ctx.activation.keeps_output else x)

    @staticmethod
    def backward(ctx, *signals):
        (e,) = signals
        (kept,) = ctx.saved_tensors
        rho = ctx.activation
        pair = (
            (kept, kept) if rho.needs_input else (None, kept if rho.keeps_output else rho.rho(kept))
        )
        return rho.difference(pair, e * -ctx.nudge) / -ctx.nudge, None, None


def difference(x: Tensor, activation: Activation, nudge: float) -> Tensor:
    """ρ(x), sending (ψ(y) − ψ(y + d))/βB down: d = −βB·∂ℓ/∂y, ψ the matched feedback of ρ.

    Args:
        x: the input.
        activation: ρ and ψ.
        nudge: βB.

    Raises:
        RuntimeError: within ``torch.func.vmap``, which hides B.
    """
    levels = () if torch.compiler.is_compiling() else get_interpreter_stack() or ()
    if any(level.key() == TransformType.Vmap for level in levels):
        raise RuntimeError(
            "attach(beta=...) scales a nudge by the number of samples, which torch.func.vmap hides "
            "from the model; give the model the whole batch, or attach without beta."
        )
    return run(_Difference, x, activation, nudge)
