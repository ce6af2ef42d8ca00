"""Feedback weights that share the forward ones' signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from targetprop.properties import Row
from targetprop.rules.rule import Rule


@dataclass(frozen=True)
class SignSymmetry(Rule):
    """Sign symmetry (Liao et al. 2016): ``B = |ω| ⊙ sign(θ)``, θ lending its signs, not sizes.

    Attributes:
        variant: ``"uSF"``, one size for all weights of a map (Xiao et al. 2018; Moskovitz et al.
            2018 on its scale: here the standard deviation of torch's initial weights); ``"frSF"``,
            random sizes, fixed; ``"brSF"``, random sizes, drawn anew for every batch (by
            ``Feedback.step``, which ``Feedback.follow`` calls). Bartunov et al. (2018) compare it
            on larger images.
    """

    rows = (
        Row(
            "SignSymmetry",
            "sizes of ω, signs of θ (Liao et al. 2016)",
            transport="signs",
            symmetric="yes: signs",
        ),
    )

    variant: Literal["uSF", "brSF", "frSF"] = "uSF"

    name = "sign_symmetry"
    equation = "B = |ω| ⊙ sign(θ)"
    papers = ("liao2016", "xiao2018", "moskovitz2018", "bartunov2018")

    def __post_init__(self):
        """Refuse other variants."""
        if self.variant not in ("uSF", "brSF", "frSF"):
            raise ValueError(
                f"sign symmetry has the variants 'uSF', 'brSF' and 'frSF', got {self.variant!r}."
            )

    def sent(self, theta: Tensor, omega: Tensor) -> Tensor:
        """``|ω| ⊙ sign(θ)``."""
        return omega * theta.detach().sign()

    def initial(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Sizes, none negative."""
        if self.variant == "uSF":
            size = (3 * max(1, shape[-1])) ** -0.5  # a map may read nothing
            return torch.full(shape, size, device=generator.device)
        return super().initial(shape, generator).abs_()

    def redrawn(self, omega: Tensor, generator: Generator) -> Tensor | None:
        """New sizes, batch by batch, for brSF."""
        return self.initial(tuple(omega.shape), generator) if self.variant == "brSF" else None
