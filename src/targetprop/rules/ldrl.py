"""Learned backprop targets: ω learn to be the transpose of θ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targetprop.feedback import PredictiveSolver
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class LDRL(Rule):
    """Difference target propagation by L-DRL (Ernoult et al. 2022) at an infinitesimal nudge.

    B = ω, which learns from each map's own response to noise. With matched feedback activations the
    difference targets satisfy (tⁿ − sⁿ)/β → −A_ωᵀ e as β → 0, which is what travels here.
    ``solver``: ``"predictive"`` (the default), ``"correlation"``, ``"coupled"`` or ``"fixed"``.
    """

    name = "ldrl"
    equation = "B = ω, learned to answer noise as the layer does"
    papers = ("ernoult2022", "lee2015")

    def solver(self) -> Any:
        """The predictive solver, under 1 % mismatch, with tracking."""
        return PredictiveSolver()
