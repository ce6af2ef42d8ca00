"""Feedback alignment whose weights mirror the forward ones."""

from __future__ import annotations

from targetprop.algorithms.feedback_alignment import FeedbackAlignment
from targetprop.feedback import CorrelationSolver


class WeightMirror(FeedbackAlignment):
    """Weight mirrors (Akrout et al. 2019): ω tends to θ as the correlation of noise with the layer's response to it.

    As feedback alignment, with ``CorrelationSolver()`` for the default solver.
    """

    rule = "weight_mirror"

    default_solver = CorrelationSolver
