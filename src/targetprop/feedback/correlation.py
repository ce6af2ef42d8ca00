"""Purely Hebbian learning of ω: the correlation of a layer's response with the noise that caused it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Probe, relative
from targetprop.feedback.solver import FeedbackReport, State, noise_like, taps
from targetprop.laboratory.layers import Layer, Trace
from targetprop.properties import Row
from targetprop.ranks import ALONE, Group
from targetprop.seeds import mixed


@dataclass(frozen=True)
class CorrelationSolver:
    """ω = C/D, with C a running mean of corr(A_θ ε, ε) over probes ε and D the number of outputs that a weight feeds.

    E corr(A_θ ε, ε) = D·θ for white noise: a weight mirror (Akrout et al. 2019) for any linear map, and the minimiser of the
    L-DRL loss in closed form, its η term taken in expectation. The relative error falls as √(d/(N·n)) with the iterations n,
    d the fan-in and N the positions of a batch, and does not vanish at the optimum.

    Attributes:
        window: number of iterations the running mean remembers.
        iterations: per batch.

    """

    rows = (
        Row(
            "LDRL(net, solver=CorrelationSolver())",
            carries="difference-corrected target",
            feedback="correlation of noise and response",
            local="yes",
            transport="no",
            symmetric="no",
            phases="probes, targets",
            passes="1 + 2/3 K",
        ),
    )

    window: int = 1000
    iterations: int = 1
    tracking: bool = False

    def train(
        self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator, peers: Group = ALONE
    ) -> FeedbackReport:
        """``iterations`` updates of the running mean, then of ω."""
        counts = taps(layer, trace.input).counts * len(trace.input) * peers.size
        for _ in range(self.iterations):
            e = noise_like(trace.input, generator, peers=peers)
            c = layer.map.correlate(layer.respond(e), e, layer.omega.shape)
            peers.total_(c)
            state["count"] = state.get("count", 0) + 1
            mean = state.setdefault("correlation", torch.zeros_like(c))
            mean.lerp_(c, 1 / min(state["count"], self.window))
        # A tap that only ever meets padding has D = 0 and plays no part: leave it.
        layer.omega.copy_(torch.where(counts > 0, state["correlation"] / counts, layer.omega))
        return FeedbackReport(self.iterations)

    def calibrate(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor:
        """A mean of 100 probes."""
        for _ in range(99):
            self.probe(probe, memory, mixed(seed, memory.probes), tracked)
        return self.probe(probe, memory, mixed(seed, memory.probes), tracked)

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor:
        """One update of the running mean; it is the new ω of an attached map."""
        noise = probe.noise(seed)
        response = probe.respond(noise)
        memory.mismatch = float(
            relative((response - probe.predict(noise, probe.omega)).square().sum(), response.square().sum())
        )
        found = probe.correlate(response, noise) / probe.coefficient(seed, len(noise))
        memory.probes += 1
        mean = torch.zeros_like(found) if memory.tensor is None else memory.tensor
        memory.tensor = mean.lerp(found, 1 / min(memory.probes, self.window))
        return memory.tensor
