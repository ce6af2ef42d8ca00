"""The default way to learn ω: a layer predicts its own response to noise through ω and corrects ω by the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.feedback.solver import FeedbackReport, State, fan_in, noise_like, tap_weights
from targetprop.layers import Layer, Trace


def correction(layer: Layer, trace: Trace, e: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """The step of ω and the mismatch, from a probe ε and the layer's recorded response a = J_F ε.

        r = a − J_Gᵀ ε = a − S′ A_ω ε,      Δω = corr(S′ᵀ r, ε)/(D + d),      mismatch = ‖r‖/‖a‖

    The small-noise limit of L-DRL is ‖J_G − J_Fᵀ‖²_F up to a constant (Ernoult et al. 2022), which equals E‖r‖²; Δω descends
    its gradient, each channel and tap at the step 1/(D + d) that contracts the mean-square error most under white noise, d the
    fan-in and D the active positions. θ is not read: all that comes of it is ``response``.
    """
    residual = response - layer.stage.jvp(trace.saved, layer.map.apply(e, layer.omega))
    signal = layer.map.correlate(layer.stage.vjp(trace.saved, residual), e, layer.omega.shape)
    step = signal / (tap_weights(layer, trace) + fan_in(layer))
    # A layer whose units are all silent has response 0 and nothing to match.
    mismatch = residual.norm() / response.norm().clamp_min(torch.finfo(e.dtype).tiny)
    return step, mismatch


@dataclass(frozen=True)
class PredictiveSolver:
    """Iterate ω ← ω + Δω until the residual ‖a − J_Gᵀε‖/‖a‖, which *is* the Jacobian mismatch, is under ``tolerance``.

    The noise of the step vanishes at the optimum, so ω follows θ without a window of memory. A probe takes as many samples
    of the batch as give ``oversampling`` positions per weight of a unit, in turn from batch to batch; more would cost more per
    unit of progress. The first batch is iterated until ``tolerance`` is met.

    With ``tracking`` the algorithm gives ω and θ the same local increments through the user's optimizer (Kolen–Pollack;
    Akrout et al. 2019): the mismatch that probes have removed stays removed, and probes are needed every ``probe_every``
    batches only, or while the last one was over ``tolerance``.

    Attributes:
        tolerance: the relative Jacobian mismatch to reach.
        max_iterations: per layer and batch, after the first batch.
        first_iterations: the same on the first batch.
        oversampling: positions per probe over d = k²·C_in.
        tracking: give ω the increments of θ.
        probe_every: batches between probes of a layer under tolerance; 1 without tracking.

    """

    tolerance: float = 0.1
    max_iterations: int = 5
    first_iterations: int = 1000
    oversampling: float = 4.0
    tracking: bool = True
    probe_every: int = 10

    def train(self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator) -> FeedbackReport:
        """Probe and correct ω until the mismatch is under tolerance, if a probe is due."""
        batches = state.get("batches", 0)
        state["batches"] = batches + 1
        rest = self.probe_every if self.tracking else 1
        if batches > 0 and state["mismatch"] < self.tolerance and batches % rest != 0:
            return FeedbackReport(0, mismatch=torch.tensor(state["mismatch"]))
        limit = self.max_iterations if batches else self.first_iterations
        iterations = 0
        while True:
            part = self.part(layer, trace, state)
            e = noise_like(part.input, generator)
            step, mismatch = correction(layer, part, e, layer.respond(part, e))
            layer.omega.add_(step)
            state["mismatch"] = mismatch.item()
            iterations += 1
            if not state["mismatch"] >= self.tolerance or iterations >= limit:
                return FeedbackReport(iterations, mismatch=mismatch)

    def part(self, layer: Layer, trace: Trace, state: State) -> Trace:
        """The samples of the batch that the next probe uses, one group after another."""
        batch = len(trace.input)
        positions = trace.output[0].numel() // layer.omega.shape[0]
        wanted = math.ceil(self.oversampling * fan_in(layer) / positions)
        count = min(batch, wanted)
        start = state.get("next", 0) % batch
        start = start if start + count <= batch else 0
        state["next"] = start + count
        return trace.narrow(start, count)
