"""An oracle for analysis: ω with the feedback Jacobian nearest to the forward layer's transpose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import FeedbackReport, Solver, noise_like
from targetprop.laboratory.layers import Layer, Trace
from targetprop.maps import along, sum_to_bias
from targetprop.ranks import ALONE, Group


@dataclass(frozen=True)
class JacobianMatching(Solver):
    """ω minimises E‖J_G − J_Fᵀ‖²_F over the batch, in closed form (Bao et al. 2024); reads θ.

    With J_G = A_ωᵀM and J_Fᵀ = A_θᵀN, M and N the Jacobians of the feedback and of the forward
    stage, each output channel of ω is that of θ scaled by ⟨M, N⟩/⟨M, M⟩. Matched feedback has
    M = N, so ω = θ; mirror feedback does not. The inner products are taken with random signs v,
    ⟨Mv, Nv⟩: exact unless pooling windows share a winner or mirror feedback meets zero padding,
    whose border taps would need sums of their own.

    Attributes:
        draws: of signs.

    Raises:
        ValueError: ``draws`` is out of range.

    Example:
        >>> nn = torch.nn
        >>> net = tp.pair(nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)))
        >>> algo = tp.algorithms.LDRL(net, solver=tp.feedback.JacobianMatching())
        >>> algo.backward(torch.randn(8, 4), torch.randint(3, (8,))).feedback["fc_1"].iterations
        1
    """

    draws: int = 4
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
        """Set ω."""
        cross = square = torch.zeros(())
        for _ in range(self.draws):
            v = noise_like(trace.output, generator, peers=peers).sign_()

            def lift(d):
                return layer.stage.difference(trace.saved, trace.kept, d)

            m = torch.func.jvp(lift, (torch.zeros_like(v),), (v,))[1]
            n = layer.stage.vjp(trace.saved, v)
            dim = layer.map.bias_dim
            cross, square = cross + sum_to_bias(m * n, dim), square + sum_to_bias(m * m, dim)
        peers.total_(cross, square)
        scale = torch.where(square > 0, cross / square, torch.zeros_like(square))
        layer.omega.copy_(layer.theta * along(scale, 0, layer.theta.dim()))
        return FeedbackReport(1)
