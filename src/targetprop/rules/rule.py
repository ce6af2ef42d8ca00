"""What every rule is: a small frozen value that says which array a map's signal travels through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from targetprop.feedback import Fixed
from targetprop.properties import Row


@dataclass(frozen=True)
class Rule:
    """A map sends e = ∂ℓ/∂(A_θ x) down as A_{B}ᵀ e, with B = ``sent(θ, ω)``.

    Attributes:
        name: as :func:`targetprop.attach` takes it.
        equation: B, in one line.
        papers: keys of the entries of ``citations.bib``.
        rows: of the table of algorithms.
        own_feedback: ω exist; else the rule uses θ itself.
        tracks: ω gets the gradient of θ through the user's optimizer, whatever the solver.
        direct: the signal comes straight from the output.
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    papers: ClassVar[tuple[str, ...]]
    rows: ClassVar[tuple[Row, ...]]
    own_feedback: ClassVar[bool] = True
    tracks: ClassVar[bool] = False
    direct: ClassVar[bool] = False

    def sent(self, theta: Tensor, omega: Tensor) -> Tensor:
        """B, shaped like θ."""
        return omega

    def solver(self) -> Any:
        """How ω learns unless the user says otherwise; see ``targetprop.feedback``."""
        return Fixed()

    def initial(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """ω at first, (groups, outputs, d): uniform within ±1/√d, as torch draws weights."""
        drawn = torch.rand(shape, generator=generator, device=generator.device)
        return drawn.mul_(2).sub_(1) / shape[-1] ** 0.5

    def redrawn(self, omega: Tensor, generator: Generator) -> Tensor | None:
        """A new ω for the next batch, or None for a rule that keeps it."""
        return None
