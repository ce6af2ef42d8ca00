"""Feedback alignment whose weights mirror the forward ones."""

from __future__ import annotations

from targetprop.algorithms.base import Loss
from targetprop.algorithms.feedback_alignment import FeedbackAlignment
from targetprop.feedback import CorrelationSolver, Solver
from targetprop.pairing import Network


class WeightMirror(FeedbackAlignment):
    """Weight mirrors (Akrout et al. 2019): ω tends to θ as the correlation of noise with the layer's response to it."""

    def __init__(
        self,
        net: Network,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for feedback alignment; the default solver is ``CorrelationSolver()``."""
        super().__init__(net, solver or CorrelationSolver(), seed, loss, label_smoothing)
