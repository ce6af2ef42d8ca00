"""The feedback learning of target propagation before L-DRL: a denoising auto-encoder a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from targetprop.feedback import losses
from targetprop.feedback.memory import Memory
from targetprop.feedback.sgd import momentum_step
from targetprop.feedback.solver import FeedbackReport, PerLayer, Solver, noise_like, per_layer
from targetprop.laboratory.layers import Layer, Trace
from targetprop.ranks import ALONE, Group


@dataclass(frozen=True)
class ReconstructionSolver(Solver):
    """K iterations of SGD a batch on ‖G(F(x + ε)) − (x + ε)‖² (Bengio 2014; Lee et al. 2015).

    Attributes:
        noise: σ, standard deviation of ε; a number, or one per layer with feedback.
        lr: learning rate of ω and b_ω.
        iterations: K.
        momentum: of SGD.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> nn = torch.nn
        >>> net = tp.pair(nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)))
        >>> algo = tp.algorithms.DTP(net, solver=tp.feedback.ReconstructionSolver(iterations=2))
        >>> algo.backward(torch.randn(8, 4), torch.randint(3, (8,))).feedback["fc_1"].iterations
        2
    """

    noise: PerLayer = 0.1
    lr: PerLayer = 1e-3
    iterations: int | tuple[int, ...] = 1
    momentum: float = 0.9
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
        """K updates of ω and b_ω; the reported loss is that before the last."""
        sigma, lr = per_layer(self.noise, index, "noise"), per_layer(self.lr, index, "lr")
        count = int(per_layer(self.iterations, index, "iterations"))
        loss = None
        for _ in range(count):
            e = noise_like(trace.input, generator, peers=peers).mul_(sigma)
            loss, gradient, bias_gradient = losses.reconstruction(layer, trace, e)
            peers.mean_(loss, gradient, bias_gradient)
            momentum_step(layer.omega, gradient, memory, "momentum", lr, self.momentum)
            if bias_gradient is not None and layer.feedback_bias is not None:
                momentum_step(
                    layer.feedback_bias, bias_gradient, memory, "bias_momentum", lr, self.momentum
                )
        return FeedbackReport(count, loss)
