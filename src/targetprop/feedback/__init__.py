"""Ways to learn feedback weights ω, one a file; see :class:`~targetprop.feedback.solver.Solver`."""

import sys
from typing import Any

from targetprop.feedback.adam import AdamSolver
from targetprop.feedback.correlation import CorrelationSolver
from targetprop.feedback.coupled import CoupledSolver
from targetprop.feedback.fixed import Fixed
from targetprop.feedback.jacobian_matching import JacobianMatching
from targetprop.feedback.predictive import PredictiveSolver
from targetprop.feedback.reconstruction import ReconstructionSolver
from targetprop.feedback.sgd import SGDSolver
from targetprop.feedback.solver import FeedbackReport, ProbeSolver, Solver
from targetprop.feedback.symmetric import Symmetric
from targetprop.properties import found

SOLVERS: dict[str, Any] = found(sys.modules[__name__], "tracking")
"""Every solver by its name, which is its file's."""

__all__ = [
    "SOLVERS",
    "AdamSolver",
    "CorrelationSolver",
    "CoupledSolver",
    "FeedbackReport",
    "Fixed",
    "JacobianMatching",
    "PredictiveSolver",
    "ProbeSolver",
    "ReconstructionSolver",
    "SGDSolver",
    "Solver",
    "Symmetric",
]
