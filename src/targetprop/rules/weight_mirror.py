"""Feedback weights that mirror the forward ones by correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targetprop.feedback import CorrelationSolver
from targetprop.properties import Row
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class WeightMirror(Rule):
    """Weight mirrors (Akrout et al. 2019): B = ω, the running correlation of noise and response."""

    rows = (
        Row(
            "WeightMirror",
            "correlation of noise and response",
            phases="probes, errors",
            passes="1 + 2/3 K",
        ),
    )

    name = "weight_mirror"
    equation = "B = ω = E (A_θ ε) εᵀ, a running mean"
    papers = ("akrout2019",)

    def solver(self) -> Any:
        """The correlation solver."""
        return CorrelationSolver()
