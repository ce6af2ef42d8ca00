"""The predictive solver with a pathway of its own for predictions, so that ω is used in one direction only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Probe
from targetprop.feedback.predictive import correction, patch_correction, unreduced
from targetprop.feedback.solver import FeedbackReport, State, noise_like, taps
from targetprop.laboratory.layers import Layer, Trace
from targetprop.maps import Conv2dMap, DenseMap
from targetprop.properties import Row
from targetprop.ranks import ALONE, Group
from targetprop.seeds import mixed


@dataclass(frozen=True)
class CoupledSolver:
    """Auxiliary weights κ predict the layer's response; ω and κ receive equal corrections and equal decay.

        κ, ω ← (1 − λ)κ, (1 − λ)ω          r = A_θ ε − A_κ ε          κ, ω ← κ + Δ, ω + Δ,     Δ = corr(r, ε)/(D + d)

    Kolen and Pollack's coupling (1994; Akrout et al. 2019): ω − κ shrinks by 1 − λ an iteration whatever the Δ, so ω converges
    to what the prediction alone determines, and no synapse runs both ways. The decay costs accuracy: with a contraction c an
    iteration, √(d/(D + d)), both rest at a relative mismatch of at most cλ/(1 − c(1 − λ)).

    Attributes:
        decay: λ.
        iterations: per batch.
        first_iterations: the same on the first batch.
        oversampling: positions per iteration over d, as for the predictive solver.
        max_samples: noise samples per iteration at most.

    """

    rows = (
        Row(
            "LDRL(net, solver=CoupledSolver())",
            carries="difference-corrected target",
            feedback="predicts the response through auxiliary weights; ω gets the same corrections and decay (Kolen–Pollack)",
            local="yes",
            transport="no",
            symmetric="shared increments",
            phases="probes, targets",
            passes="1 + about 0.3 K",
        ),
    )

    decay: float = 0.02
    iterations: int = 5
    first_iterations: int = 300
    oversampling: float = 2.0
    max_samples: int = 1024
    tracking: bool = False

    def train(
        self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator, peers: Group = ALONE
    ) -> FeedbackReport:
        """Iterate both weights; the reported mismatch is that of κ before the last correction."""
        use = taps(layer, trace.input)
        samples = use.samples(self.oversampling, self.max_samples)
        count = self.iterations if "auxiliary" in state else self.first_iterations
        kappa = state.setdefault("auxiliary", torch.zeros_like(layer.omega))
        mismatch = None
        for _ in range(count):
            kappa.mul_(1 - self.decay)
            layer.omega.mul_(1 - self.decay)
            if isinstance(unreduced(layer), (DenseMap, Conv2dMap)):
                step, mismatch = patch_correction(layer, kappa, state, generator)
            else:
                e = noise_like(trace.input, generator, samples, peers)
                step, mismatch = correction(layer, kappa, use, e, layer.respond(e), samples, peers)
            kappa.add_(step)
            layer.omega.add_(step)
        return FeedbackReport(count, mismatch=mismatch)

    def calibrate(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor:
        """``first_iterations`` of both weights."""
        return self._iterate(probe, memory, seed, self.first_iterations)

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor:
        """``iterations`` of both weights of an attached map; the new ω."""
        return self._iterate(probe, memory, seed, self.iterations)

    def _iterate(self, probe: Probe, memory: Memory, seed: int, count: int) -> Tensor:
        omega = probe.omega
        kappa = torch.zeros_like(omega) if memory.tensor is None else memory.tensor
        for _ in range(count):
            omega, kappa = omega * (1 - self.decay), kappa * (1 - self.decay)
            step, before = probe.having(kappa).difference(mixed(seed, memory.probes))
            omega, kappa = omega + step, kappa + step
            memory.probes, memory.mismatch = memory.probes + 1, float(before)
        memory.tensor = kappa
        return omega
