"""L-DRL at its optimum, by copying."""

from __future__ import annotations

from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import JacobianMatching
from targetprop.properties import corrected


class JacobianMatchingOracle(LDRL):
    """L-DRL with ω at the minimiser of ‖J_G − J_Fᵀ‖² in closed form (Bao et al. 2024).

    As L-DRL, with ``JacobianMatching()``, an oracle, which reads θ, for the default solver.
    """

    papers = ("ernoult2022", "bao2024")
    rows = (
        corrected(
            "JacobianMatchingOracle",
            "nearest Jacobian in closed form (Bao et al. 2024): an oracle",
            local="no",
            transport="yes",
            symmetric="yes",
            phases="targets",
        ),
    )

    default_solver = JacobianMatching
