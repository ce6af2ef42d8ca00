"""Feedback weights that stay random."""

from __future__ import annotations

from dataclasses import dataclass

from targetprop.properties import Row
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """Feedback alignment (Lillicrap et al. 2016): B = ω, random and fixed."""

    rows = (Row("FeedbackAlignment", "as initialised (Lillicrap et al. 2016)"),)

    name = "feedback_alignment"
    equation = "B = ω, random and fixed"
    papers = ("lillicrap2016",)
