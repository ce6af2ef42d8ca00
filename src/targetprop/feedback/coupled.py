"""The predictive solver with a pathway of its own for predictions: ω is used one way only."""

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
class CoupledSolver(IteratedSolver):
    """Auxiliary weights κ predict the layer's response; ω and κ get equal corrections and decay.

        κ, ω ← (1 − λ)κ, (1 − λ)ω    κ, ω ← κ + Δ, ω + Δ,    Δ = A_θ − A_κ as the response shows it

    Kolen and Pollack's coupling (1994; Akrout et al. 2019): ω − κ shrinks by 1 − λ an iteration
    whatever the Δ, so ω converges to what prediction alone determines; no synapse runs both ways.

    Attributes:
        decay: λ.
        iterations: per batch.
        first_iterations: the same on the first batch.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> model = torch.nn.Linear(8, 4)
        >>> feedback = tp.attach(model, solver=tp.feedback.CoupledSolver(decay=0.05))
        >>> feedback.mismatch()[""] < 0.01
        True
    """

    rows = (
        corrected(
            "LDRL(net, solver=CoupledSolver())",
            "predicts the response through auxiliary weights; "
            "ω gets the same corrections and decay (Kolen–Pollack)",
            symmetric="shared increments",
            phases="probes, targets",
            passes="1 + about 0.3 K",
        ),
    )

    decay: float = 0.02
    iterations: int = 5
    first_iterations: int = 300
    tracking: bool = False

    def iterate(self, probe: Probe, memory: Memory, seed: int, count: int) -> Tensor:
        """The new ω; the mismatch remembered is that of κ before the last correction."""
        omega = probe.omega
        kappa = memory.tensors.get("auxiliary", torch.zeros_like(omega)).to(omega)
        for _ in range(count):
            omega, kappa = omega * (1 - self.decay), kappa * (1 - self.decay)
            step, before = probe.having(kappa).difference(mixed(seed, memory.probes))
            omega, kappa = omega + step, kappa + step
            memory.probes, memory.mismatch = memory.probes + 1, float(before)
        memory.tensors["auxiliary"] = kappa
        return omega
