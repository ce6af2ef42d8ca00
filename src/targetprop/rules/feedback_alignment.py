"""Feedback weights that stay random."""

from __future__ import annotations

from dataclasses import dataclass

from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """Feedback alignment (Lillicrap et al. 2016): B = ω, random and fixed."""

    name = "feedback_alignment"
    equation = "B = ω, random and fixed"
    papers = ("lillicrap2016",)
