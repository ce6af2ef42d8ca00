"""An oracle for analysis: ω = θᵀ by copying."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import FeedbackReport, Solver
from targetprop.laboratory.layers import Layer, Trace
from targetprop.properties import corrected
from targetprop.ranks import ALONE, Group


@dataclass(frozen=True)
class Symmetric(Solver):
    """Sets ω to θᵀ (weight transport): what L-DRL would learn at best, not a way to learn it.

    Example:
        >>> nn = torch.nn
        >>> net = tp.pair(nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)))
        >>> algo = tp.algorithms.LDRL(net, solver=tp.feedback.Symmetric())
        >>> algo.backward(torch.randn(8, 4), torch.randint(3, (8,))).feedback["fc_1"].iterations
        1
    """

    rows = (
        corrected(
            "LDRL(net, solver=Symmetric())",
            "copies θ: an oracle",
            local="no",
            transport="yes",
            symmetric="yes",
            phases="targets",
        ),
    )

    tracking: bool = False

    def train(
        self,
        index: int,
        layer: Layer,
        trace: Trace,
        memory: Memory,
        generator: Generator,
        peers: Group = ALONE,
    ) -> FeedbackReport:
        """Copy θ to ω."""
        layer.omega.copy_(layer.theta)
        return FeedbackReport(1)
