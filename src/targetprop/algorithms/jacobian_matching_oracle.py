"""L-DRL at its optimum, by copying."""

from __future__ import annotations

from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import JacobianMatching


class JacobianMatchingOracle(LDRL):
    """L-DRL with ω at the minimiser of ‖J_G − J_Fᵀ‖² in closed form (Bao et al. 2024), which reads θ: an oracle.

    As L-DRL, with ``JacobianMatching()`` for the default solver.
    """

    default_solver = JacobianMatching
