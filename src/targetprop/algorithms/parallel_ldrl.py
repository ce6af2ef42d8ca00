"""L-DRL with one update of the feedback a batch."""

from __future__ import annotations

from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import AdamSolver
from targetprop.properties import corrected


class ParallelLDRL(LDRL):
    """Parallel L-DRL (code of Ernoult et al. 2022): one Adam update per ωⁿ on ten noise samples.

    As L-DRL, with ``AdamSolver()`` for the default solver.
    """

    papers = ("ernoult2022",)
    rows = (
        corrected(
            "ParallelLDRL",
            "one Adam step a batch on the L-DRL loss, 10 noise samples",
            symmetric="yes: ω both ways",
            phases="noisy passes, targets",
            passes="14",
        ),
    )

    default_solver = AdamSolver
