"""L-DRL with one update of the feedback a batch."""

from __future__ import annotations

from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import AdamSolver


class ParallelLDRL(LDRL):
    """Parallel L-DRL (the code of Ernoult et al. 2022): each ωⁿ makes a single Adam update over ten noise samples.

    As L-DRL, with ``AdamSolver()`` for the default solver.
    """

    default_solver = AdamSolver
