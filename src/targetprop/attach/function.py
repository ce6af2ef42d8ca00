"""The autograd functions of attached maps: A_θ x forward, A_ωᵀ e backward.

The signal e = ∂ℓ/∂(A_θ x) leaves a map as A_ωᵀ e, while θ gets its local product ∂⟨e, A_θ x⟩/∂θ:
with ω = θ that is backpropagation, exactly. θᵀ is multiplied nowhere, and ω gets no gradient (see
``targetprop.attach.tracking``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
)
from torch.autograd import Function

from targetprop.attach.refusals import label

aten = torch.ops.aten


def autocast(x: Tensor, *weights: Tensor | None) -> tuple:
    """The operands in the format that ``torch.autocast``, where it is on, would multiply them in.

    Cast here, where autograd sees it: autocast's own cache would keep an ω that changed in place.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return (x, *weights)
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), *(w if w is None else w.to(dtype) for w in weights)


def run(function: Any, *arguments: Any) -> Any:
    """``function.apply``, whose type torch does not tell."""
    return function.apply(*arguments)


def transformed() -> bool:
    """Whether a ``torch.func`` transform runs: its tensors do not say that they need a gradient."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is not None


def needs_gradient(x: Tensor) -> bool:
    """Whether a signal is to be sent down to x, whatever transforms of ``torch.func`` wrap it.

    Forward mode counts: it goes through θ, and the functions below refuse it.
    """
    if torch.compiler.is_compiling() or not transformed():
        return x.requires_grad
    while is_functorch_wrapped_tensor(x):
        if x.requires_grad:
            return True
        x = get_unwrapped(x)
    return x.requires_grad or any(
        level.key() == TransformType.Jvp for level in get_interpreter_stack() or ()
    )


def note_second_order(omega: Tensor) -> None:
    """Say once what a graph of the backward pass itself (``create_graph=True``) leaves out."""
    if torch.is_grad_enabled() and not omega.requires_grad and not transformed():
        if torch.compiler.is_compiling():
            return
        warnings.warn(
            "create_graph=True: the signal travels by ω, a constant, so that a gradient penalty, a "
            "Hessian product or a meta-gradient lacks its terms through θ; take it within "
            "feedback.exact(), or attach by rule='symmetric'.",
            UserWarning,
            stacklevel=2,
        )


def rows(x: Tensor) -> Tensor:
    """x as a matrix of (positions, features); -1 would not tell the size of an empty one."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


class _Linear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, omega):
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, omega = inputs
        ctx.save_for_backward(x if weight.requires_grad or transformed() else None, omega)

    @staticmethod
    def backward(ctx, *signals):
        (e,) = signals
        x, omega = ctx.saved_tensors
        note_second_order(omega)
        needs = ctx.needs_input_grad
        down = e @ omega.to(e.dtype) if needs[0] else None
        weight = rows(e).T @ rows(x) if needs[1] else None
        bias = rows(e).sum(0) if needs[2] else None
        return down, weight, bias, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, omega: Tensor) -> Tensor:
    """x θᵀ + b, whose backward sends e ω down; shapes as in ``nn.functional.linear``, ω like θ."""
    return run(_Linear, *autocast(x, weight, bias), omega)


class _Convolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, omega, *geometry):
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, bias, omega, *ctx.geometry = inputs
        ctx.biases = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, omega)

    @staticmethod
    def backward(ctx, *signals):
        (e,) = signals
        x, omega = ctx.saved_tensors
        note_second_order(omega)
        mask = [bool(need) for need in ctx.needs_input_grad[:3]]
        down, weight, bias = aten.convolution_backward(
            e, x, omega.to(e.dtype), ctx.biases, *ctx.geometry, mask
        )
        return down, weight, bias, None, None, None, None, None, None, None


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, omega: Tensor, *geometry) -> Tensor:
    """The convolution of a batch x with θ, whose backward runs through ω in θ's place.

    Args:
        x: (batch, channels, *positions).
        weight: θ, laid out as torch's (transposed) convolution has it.
        bias: b, or None.
        omega: ω, like θ.
        geometry: as in ``torch.convolution``: stride, padding, dilation, transposed, output
            padding, groups.
    """
    return run(_Convolution, *autocast(x, weight, bias), omega, *geometry)


class _Gain(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, omega):
        return x * weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, omega = inputs
        ctx.save_for_backward(x, omega)

    @staticmethod
    def backward(ctx, *signals):
        (e,) = signals
        x, omega = ctx.saved_tensors
        note_second_order(omega)
        needs = ctx.needs_input_grad
        return (
            e * omega if needs[0] else None,
            (e * x).sum_to_size(omega.shape) if needs[1] else None,
            None,
        )


def gain(x: Tensor, weight: Tensor, omega: Tensor) -> Tensor:
    """γ ⊙ x, whose backward sends ω ⊙ e down; γ and ω broadcast to x, with as many dimensions."""
    return run(_Gain, x, weight, omega)


class _Bilinear(Function):
    @staticmethod
    def forward(x, weight, omega, function):
        return function(x, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, omega, ctx.function = inputs
        ctx.save_for_backward(x, omega)

    @staticmethod
    def backward(ctx, *signals):
        (e,) = signals
        x, omega = (value.to(e.dtype) for value in ctx.saved_tensors)
        note_second_order(omega)
        if not torch.is_grad_enabled():  # nobody differentiates once more
            x, omega = x.detach(), omega.detach()
        # Each vector-Jacobian product is taken at 0: its own argument does not matter.
        function, needs = ctx.function, ctx.needs_input_grad
        down = (
            torch.func.vjp(lambda v: function(v, omega), torch.zeros_like(x))[1](e)[0]
            if needs[0]
            else None
        )
        weight = (
            torch.func.vjp(lambda w: function(x, w), torch.zeros_like(omega))[1](e)[0]
            if needs[1]
            else None
        )
        return down, weight, None, None


def bilinear(
    x: Tensor, weight: Tensor, omega: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """function(x, θ), linear in each; its backward sends the transpose of function(·, ω) down."""
    return run(_Bilinear, *autocast(x, weight), omega, function)


def error(y: Tensor, link) -> Tensor:
    """y; a backward pass leaves the error ∂ℓ/∂y in ``link.error`` for :func:`direct`."""

    def keep(e: Tensor) -> None:
        link.error = e.detach()
        torch.autograd.Variable._execution_engine.queue_callback(  # when the pass ends
            lambda: setattr(link, "error", None)
        )

    if y.requires_grad:
        y.register_hook(keep)
    return y


class _Direct(Function):
    @staticmethod
    def forward(y, x, omega, module, name):
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, x, omega, ctx.module, ctx.name = inputs
        ctx.mark_dirty(y)  # it stays itself, no view, which users could not write into
        ctx.shape = x.shape
        ctx.save_for_backward(omega)

    @staticmethod
    def backward(ctx, *signals):
        (e,) = signals
        (omega,) = ctx.saved_tensors
        source = ctx.module._feedback.error
        if source is None:
            raise RuntimeError(
                "direct feedback alignment met a signal before the error of the network's output: "
                "the loss does not depend on the last map that the example inputs reached; attach "
                "with the inputs and the output that you train."
            )
        each = ctx.module._feedback_positionwise[ctx.name]
        errors = rows(source) if each else source.flatten(1)
        fits = len(omega) == errors.shape[1]
        if not fits or len(errors) * omega.shape[1] != ctx.shape.numel():
            raise RuntimeError(
                f"{label(ctx.module)} read {tuple(ctx.shape)} and the output's error is "
                f"{tuple(source.shape)}, but its direct feedback takes {omega.shape[0]} numbers of "
                f"an error to {omega.shape[1]} of an input, per "
                f"{'position' if each else 'sample'}, as the example inputs had them; attach again "
                "with inputs of the size that you train."
            )
        return e, (errors @ omega.to(errors.dtype)).reshape(ctx.shape), None, None, None


def direct(y: Tensor, x: Tensor, omega: Tensor, module: nn.Module, name: str) -> Tensor:
    """y = A_θ x, made without x's graph; its backward sends the output's error through ω to x.

    Args:
        y: as made.
        x: the input.
        omega: ω, (numbers of an error, numbers of an input), of a position or of a sample.
        module: the attached module, whose link holds the error.
        name: of ω in it.
    """
    return run(_Direct, y, x, omega, module, name)
