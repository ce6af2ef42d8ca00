"""Feedback alignment whose weights receive the forward ones' increments."""

from __future__ import annotations

from targetprop.algorithms.base import Loss
from targetprop.algorithms.feedback_alignment import FeedbackAlignment
from targetprop.feedback import Fixed
from targetprop.pairing import Network


class KolenPollack(FeedbackAlignment):
    """Kolen–Pollack (Akrout et al. 2019): ω receives the increments of θ, and the same weight decay shrinks their difference.

    Both come from the user's optimizer: given ``net.parameters()`` and a weight decay λ, it shrinks ω − θ by 1 − lr·λ a step.
    """

    rule = "kolen_pollack"

    def __init__(self, net: Network, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0, seed: int = 0):
        """As for feedback alignment, without a solver; ``seed`` is of ω on a plain module."""
        super().__init__(net, Fixed(tracking=True), seed, loss=loss, label_smoothing=label_smoothing)
