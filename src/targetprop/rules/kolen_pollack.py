"""Feedback weights that receive the forward ones' increments."""

from __future__ import annotations

from dataclasses import dataclass

from targetprop.properties import Row
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class KolenPollack(Rule):
    """Kolen–Pollack (Akrout et al. 2019): ω gets θ's increments, and equal decay shrinks ω − θ.

    The user's optimizer makes both: it needs weight decay λ > 0; a step shrinks ω − θ by 1 − lr·λ.
    """

    rows = (Row("KolenPollack", "increments and decay of θ", symmetric="shared increments"),)

    name = "kolen_pollack"
    equation = "B = ω, which gets the increments and the decay of θ"
    papers = ("akrout2019",)
    tracks = True
