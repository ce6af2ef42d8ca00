"""The feedback losses with their gradients on ω in closed form.

Both are at most quadratic in ω, as G(t) = A_ωᵀ R(t) + b_ω is linear: two products give a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from targetprop.laboratory.layers import Layer, Trace
from targetprop.maps import sum_to_bias


def to_input_noise(layer: Layer, trace: Trace, e: Tensor) -> Tensor:
    """u = R(F(x + ε)) − R(F(x)), the layer's response to noise as the feedback map sees it.

    Mirror feedback, the paper's: a second pass of x + ε, fed back through the pool winners of
    *that* pass. Matched feedback: the response J_F ε, with winners and gates of the clean pass
    frozen; this is the small-noise limit, whose minimiser is J_G = J_Fᵀ.
    """
    stage = layer.stage
    if stage.kind == "matched":
        return stage.difference(trace.saved, trace.kept, stage.jvp(trace.saved, layer.respond(e)))
    noisy = layer.trace(trace.input + e)
    return stage.lift(noisy.saved, noisy.output).sub_(stage.lift(trace.saved, trace.output))


def ldrl(layer: Layer, trace: Trace, e: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Local difference reconstruction loss and its gradient on ω (Ernoult et al. 2022; PAPER §2a).

    L = batch mean of −2⟨ε, G(F(x + ε)) − G(F(x))⟩ + ‖G(F(x) + η) − G(F(x))‖², sums over features.

    With u as in ``to_input_noise`` and v = R(F(x) + η) − R(F(x)) the gradient is
    2·corr(v, A_ωᵀv) − 2·corr(u, ε) over the batch size, and the loss follows from it:
    ⟨ω, ∂L/∂ω⟩ = −2⟨ε, A_ωᵀu⟩ + 2‖A_ωᵀv‖² needs no pass of its own. Four products.

    Args:
        layer: the layer.
        trace: its clean pass.
        e: ε, input noise shaped like x.
        h: η, output noise shaped like s.
    """
    batch, shape = len(e), layer.omega.shape
    gradient = layer.map.correlate(to_input_noise(layer, trace, e), e, shape)
    v = layer.stage.difference(trace.saved, trace.kept, h)
    reconstruction = layer.feed_back(v, trace.input.shape)
    gradient = layer.map.correlate(v, reconstruction, shape).sub_(gradient).mul_(2 / batch)
    loss = torch.sum(layer.omega * gradient) - reconstruction.square().sum() / batch
    return loss, gradient


def reconstruction(layer: Layer, trace: Trace, e: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Denoising auto-encoder loss and its gradients on ω and b_ω (Lee et al. 2015; Bengio 2014).

    L = mean over the batch of ‖G(F(x + ε)) − (x + ε)‖², sum over features.
    """
    batch = len(e)
    noisy = layer.trace(trace.input + e)
    z = layer.stage.lift(noisy.saved, noisy.output)
    error = layer.reconstruct(noisy, noisy.output) - noisy.input
    gradient = layer.map.correlate(z, error, layer.omega.shape) * (2 / batch)
    biased = layer.feedback_bias is not None
    bias_gradient = sum_to_bias(error, layer.map.bias_dim) * (2 / batch) if biased else None
    return error.square().sum() / batch, gradient, bias_gradient
