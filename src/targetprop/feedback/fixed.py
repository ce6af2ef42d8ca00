"""Feedback that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Probe
from targetprop.feedback.solver import ProbeSolver


@dataclass(frozen=True)
class Fixed(ProbeSolver):
    """Leaves ω as initialised (feedback alignment: Lillicrap et al. 2016; Shibuya et al. 2023).

    Example:
        >>> model = torch.nn.Linear(8, 4)
        >>> feedback = tp.attach(model, solver=tp.feedback.Fixed())
        >>> feedback.mismatch()[""] > 0.5
        True
    """

    learns = False

    tracking: bool = False

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> None:
        """Do nothing."""
