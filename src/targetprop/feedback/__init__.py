"""Ways to learn the feedback weights ω, one a file; see :class:`~targetprop.feedback.solver.Solver`."""

from targetprop.feedback.correlation import CorrelationSolver
from targetprop.feedback.fixed import Fixed
from targetprop.feedback.oracle import Symmetric
from targetprop.feedback.predictive import PredictiveSolver
from targetprop.feedback.reconstruction import ReconstructionSolver
from targetprop.feedback.sgd import SGDSolver
from targetprop.feedback.solver import FeedbackReport, Solver

SOLVERS = {
    "predictive": PredictiveSolver,
    "correlation": CorrelationSolver,
    "sgd": SGDSolver,
    "reconstruction": ReconstructionSolver,
    "symmetric": Symmetric,
    "fixed": Fixed,
}

__all__ = [
    "SOLVERS",
    "CorrelationSolver",
    "FeedbackReport",
    "Fixed",
    "PredictiveSolver",
    "ReconstructionSolver",
    "SGDSolver",
    "Solver",
    "Symmetric",
]
