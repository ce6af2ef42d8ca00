"""Weight transport, said aloud."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class Symmetric(Rule):
    """B = θ: backpropagation by the attached engine, its oracle. No ω exist."""

    name = "symmetric"
    equation = "B = θ"
    papers = ("rumelhart1986",)
    own_feedback = False

    def sent(self, theta: Tensor, omega: Tensor) -> Tensor:
        """θ."""
        return theta.view_as(theta)  # torch.compile takes no argument of a function twice
