"""L-DRL at its optimum, by copying."""

from __future__ import annotations

from targetprop.algorithms.base import Loss
from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import JacobianMatching, Solver
from targetprop.pairing import Network


class JacobianMatchingOracle(LDRL):
    """L-DRL with ω at the minimiser of ‖J_G − J_Fᵀ‖² in closed form (Bao et al. 2024), which reads θ: an oracle."""

    def __init__(
        self,
        net: Network,
        beta: float = 0.1,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for L-DRL; the default solver is ``JacobianMatching()``."""
        super().__init__(net, beta, solver or JacobianMatching(), seed, loss, label_smoothing)
