"""Feedback weights that stay random."""

from __future__ import annotations

from dataclasses import dataclass

from targetprop.properties import Row
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """Feedback alignment (Lillicrap et al. 2016): B = ω, random and fixed."""

    rows = (
        Row(
            "FeedbackAlignment",
            carries="error",
            feedback="as initialised (Lillicrap et al. 2016)",
            local="yes",
            transport="no",
            symmetric="no",
            phases="errors",
            passes="1",
        ),
    )

    name = "feedback_alignment"
    equation = "B = ω, random and fixed"
    papers = ("lillicrap2016",)
