"""L-DRL with one update of the feedback a batch."""

from __future__ import annotations

from targetprop.algorithms.base import Loss
from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import AdamSolver, Solver
from targetprop.pairing import Network


class ParallelLDRL(LDRL):
    """Parallel L-DRL (the code of Ernoult et al. 2022): each ωⁿ makes a single Adam update over ten noise samples."""

    def __init__(
        self,
        net: Network,
        beta: float = 0.1,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for L-DRL; the default solver is ``AdamSolver()``."""
        super().__init__(net, beta, solver or AdamSolver(), seed, loss, label_smoothing)
