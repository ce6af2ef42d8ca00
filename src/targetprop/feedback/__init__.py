"""Ways to learn the feedback weights ω, one a file; see :class:`~targetprop.feedback.solver.Solver`."""

from targetprop.feedback.adam import AdamSolver
from targetprop.feedback.correlation import CorrelationSolver
from targetprop.feedback.coupled import CoupledSolver
from targetprop.feedback.fixed import Fixed
from targetprop.feedback.jacobian_matching import JacobianMatching
from targetprop.feedback.oracle import Symmetric
from targetprop.feedback.predictive import PredictiveSolver
from targetprop.feedback.reconstruction import ReconstructionSolver
from targetprop.feedback.sgd import SGDSolver
from targetprop.feedback.solver import FeedbackReport, Solver

SOLVERS = {
    "predictive": PredictiveSolver,
    "coupled": CoupledSolver,
    "correlation": CorrelationSolver,
    "sgd": SGDSolver,
    "adam": AdamSolver,
    "reconstruction": ReconstructionSolver,
    "symmetric": Symmetric,
    "jacobian_matching": JacobianMatching,
    "fixed": Fixed,
}

__all__ = [
    "SOLVERS",
    "AdamSolver",
    "CorrelationSolver",
    "CoupledSolver",
    "FeedbackReport",
    "Fixed",
    "JacobianMatching",
    "PredictiveSolver",
    "ReconstructionSolver",
    "SGDSolver",
    "Solver",
    "Symmetric",
]
