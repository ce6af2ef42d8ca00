"""Feedback that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from targetprop.feedback.memory import NEVER, Memory
from targetprop.feedback.patches import Probe
from targetprop.feedback.solver import FeedbackReport, State
from targetprop.laboratory.layers import Layer, Trace
from targetprop.ranks import ALONE, Group


@dataclass(frozen=True)
class Fixed:
    """Leaves ω as it was initialised (feedback alignment's choice: Lillicrap et al. 2016; Shibuya et al. 2023)."""

    tracking: bool = False

    def train(
        self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator, peers: Group = ALONE
    ) -> FeedbackReport:
        """Do nothing."""
        return FeedbackReport(0)

    def calibrate(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> None:
        """Do nothing."""

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> None:
        """Do nothing."""
        memory.wait = NEVER
