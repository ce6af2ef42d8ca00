"""Difference target propagation with auto-encoding feedback."""

from __future__ import annotations

from targetprop.algorithms.base import Loss
from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import ReconstructionSolver, Solver
from targetprop.pairing import Network


class DTP(LDRL):
    """Difference target propagation (Lee et al. 2015).

    As L-DRL but for (a): each feedback layer learns to reconstruct, minimising ‖Gⁿ(Fⁿ(sⁿ⁻¹ + ε)) − (sⁿ⁻¹ + ε)‖², so that its
    Jacobian tends to the *inverse* of the forward layer's where one exists, not to its transpose.
    """

    def __init__(
        self,
        net: Network,
        beta: float = 0.1,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for L-DRL; the default solver is ``ReconstructionSolver()``."""
        super().__init__(net, beta, solver or ReconstructionSolver(), seed, loss, label_smoothing)
