"""Purely Hebbian learning of ω: the correlation of a layer's response with the noise that caused it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from targetprop.feedback.solver import FeedbackReport, State, noise_like, tap_weights
from targetprop.layers import Layer, Trace


@dataclass(frozen=True)
class CorrelationSolver:
    """ω = C/(D̄ + λ·mean D̄), the minimiser of the L-DRL loss in closed form, its η term taken in expectation.

    C is a running mean of corr(S′ᵀ J_F ε, ε) and D̄ one of the weights that this puts on ω (per channel and kernel tap). A
    weight mirror (Akrout et al. 2019) for any layer. Its relative error falls as √(d/(N·n)) with the iterations n,
    d the fan-in and N the active positions of a batch, and does not vanish at the optimum.

    Attributes:
        window: number of iterations the running means remember.
        ridge: λ.
        iterations: per batch.

    """

    window: int = 1000
    ridge: float = 1e-3
    iterations: int = 1
    tracking: bool = False

    def train(self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator) -> FeedbackReport:
        """``iterations`` updates of the running means, then of ω."""
        weights = tap_weights(layer, trace)
        for _ in range(self.iterations):
            e = noise_like(trace.input, generator)
            response = layer.stage.vjp(trace.saved, layer.respond(trace, e))
            c = layer.map.correlate(response, e, layer.omega.shape)
            state["count"] = state.get("count", 0) + 1
            rate = 1 / min(state["count"], self.window)
            for key, value in (("correlation", c), ("weights", weights)):
                state[key] = torch.lerp(state.get(key, torch.zeros_like(value)), value, rate)
        scale = state["weights"] + self.ridge * state["weights"].mean()
        # A layer that no unit of the batch drives has learned nothing: leave ω as it is there.
        layer.omega.copy_(torch.where(scale > 0, state["correlation"] / scale, layer.omega))
        return FeedbackReport(self.iterations)
