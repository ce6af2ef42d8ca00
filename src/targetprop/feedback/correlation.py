"""Purely Hebbian learning of ω: the correlation of a layer's response with the noise behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Probe
from targetprop.feedback.solver import IteratedSolver
from targetprop.properties import corrected
from targetprop.seeds import mixed


@dataclass(frozen=True)
class CorrelationSolver(IteratedSolver):
    """ω = C/D: C a running mean of corr(A_θ ε, ε) over probes ε, D how many outputs a weight feeds.

    E corr(A_θ ε, ε) = D·θ for white noise: a weight mirror (Akrout et al. 2019) for any linear map,
    and the minimiser of the L-DRL loss in closed form, its η term taken in expectation. The
    relative error falls as √((d + 1)/(m·n)) with the iterations n, d the fan-in and m the samples
    of a probe, and does not vanish at the optimum.

    Attributes:
        window: number of iterations the running mean remembers.
        iterations: per batch.
        first_iterations: the same on the first batch.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> model = torch.nn.Linear(8, 4)
        >>> feedback = tp.attach(model, solver=tp.feedback.CorrelationSolver(first_iterations=500))
        >>> feedback.mismatch()[""] < 0.3
        True
    """

    rows = (
        corrected(
            "LDRL(net, solver=CorrelationSolver())",
            "correlation of noise and response",
            phases="probes, targets",
            passes="1 + 2/3 K",
        ),
    )

    window: int = 1000
    iterations: int = 1
    first_iterations: int = 100
    tracking: bool = False

    def iterate(self, probe: Probe, memory: Memory, seed: int, count: int) -> Tensor:
        """The new ω; the mismatch remembered is that of the ω before."""
        memory.mismatch = float(probe.mismatch(seed))
        mean = memory.tensors.get("correlation", torch.zeros_like(probe.omega)).to(probe.omega)
        for _ in range(count):
            noise = probe.noise(mixed(seed, memory.probes))
            found = probe.correlate(probe.respond(noise), noise) / len(noise)
            memory.probes += 1
            mean = mean.lerp(found, 1 / min(memory.probes, self.window))
        memory.tensors["correlation"] = mean
        scale = probe.coefficient()
        # What no input reaches plays no part: leave it.
        return torch.where(scale != 0, mean / scale, probe.omega)
