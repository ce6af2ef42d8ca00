"""The paper's way to learn ω: K steps of SGD with momentum on the L-DRL loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.feedback import losses
from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import FeedbackReport, PerLayer, Solver, noise_like, per_layer
from targetprop.laboratory.layers import Layer, Trace
from targetprop.properties import corrected
from targetprop.ranks import ALONE, Group


def momentum_step(
    weight: Tensor, gradient: Tensor, memory: Memory, key: str, lr: float, momentum: float
) -> None:
    """w ← w − lr·v with v ← momentum·v + gradient, v = ``memory.tensors[key]``; in place."""
    if key not in memory.tensors:
        memory.tensors[key] = torch.zeros_like(weight)
    velocity = memory.tensors[key].mul_(momentum).add_(gradient)
    weight.sub_(velocity, alpha=lr)


@dataclass(frozen=True)
class SGDSolver(Solver):
    """K sequential L-DRL iterations a batch, fresh noise each (Ernoult et al. 2022; PAPER §2a).

    Momentum persists across iterations and batches; no weight decay, no schedule. A setting is one
    number for every layer with feedback, or a sequence of one for each, from input to output.

    Attributes:
        noise: σ, standard deviation of ε and η.
        lr: learning rate of ω.
        iterations: K.
        momentum: of SGD.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> nn = torch.nn
        >>> net = tp.pair(nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)))
        >>> algo = tp.algorithms.LDRL(net, solver=tp.feedback.SGDSolver(iterations=5))
        >>> algo.backward(torch.randn(8, 4), torch.randint(3, (8,))).feedback["fc_1"].iterations
        5
    """

    rows = (
        corrected(
            "LDRL(net, solver=SGDSolver(...))",
            "the paper's: K steps of SGD on the L-DRL loss",
            symmetric="yes: ω both ways",
            phases="K noisy passes, targets",
            passes="1 + 4/3 K",
        ),
    )

    noise: PerLayer = 0.2
    lr: PerLayer = 1e-3
    iterations: int | tuple[int, ...] = 20
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
        """K updates of ω; the reported loss is that before the last."""
        sigma, lr = per_layer(self.noise, index, "noise"), per_layer(self.lr, index, "lr")
        count = int(per_layer(self.iterations, index, "iterations"))
        loss = None
        output = trace.output
        for _ in range(count):
            e, h = (
                noise_like(a, generator, peers=peers).mul_(sigma) for a in (trace.input, output)
            )
            loss, gradient = losses.ldrl(layer, trace, e, h)
            peers.mean_(loss, gradient)
            momentum_step(layer.omega, gradient, memory, "momentum", lr, self.momentum)
        return FeedbackReport(count, loss)
