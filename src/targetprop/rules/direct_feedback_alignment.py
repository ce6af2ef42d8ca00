"""The output error, sent straight to every map's input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from targetprop.properties import Row
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class DirectFeedbackAlignment(Rule):
    """Direct feedback alignment (Nøkland 2016): each map's input gets ωᵀ ∂ℓ/∂sᴺ, ω random, fixed.

    sᴺ is the output of the last map that the example inputs reach. Where both that map and the
    reading one have features last, and the same dimensions before them (batch × positions, as in a
    language model), every position gets its own error; elsewhere a sample gets its whole error.
    """

    rows = (
        Row(
            "DirectFeedbackAlignment",
            "as initialised (Nøkland 2016)",
            carries="error, straight from the output",
            passes="2/3",
        ),
    )

    name = "direct_feedback_alignment"
    equation = "the output's error through ω, random and fixed"
    papers = ("nokland2016",)
    direct = True

    def initial(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """(errors, inputs), uniform within ±1/√errors: a signal is as large as its error."""
        errors, inputs = shape
        return super().initial((inputs, errors), generator).T.contiguous()
