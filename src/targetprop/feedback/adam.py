"""One L-DRL update a batch over several noise samples: the parallel variant of the paper's code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.feedback import losses
from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import FeedbackReport, PerLayer, Solver, noise_like, per_layer
from targetprop.laboratory.layers import Layer, Trace
from targetprop.ranks import ALONE, Group


def adam_step(
    weight: Tensor, gradient: Tensor, memory: Memory, lr: float, weight_decay: float
) -> None:
    """Adam, coupled weight decay (Kingma and Ba 2015; β₁ = 0.9, β₂ = 0.999, ε = 1e-8), in place."""
    mean, square = (
        memory.tensors.setdefault(key, torch.zeros_like(weight)) for key in ("mean", "square")
    )
    gradient = gradient.add(weight, alpha=weight_decay)
    memory.probes += 1
    mean.lerp_(gradient, 1 - 0.9)
    square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
    unbiased = 1 - 0.9**memory.probes, 1 - 0.999**memory.probes
    weight.addcdiv_(mean, (square / unbiased[1]).sqrt_().add_(1e-8), value=-lr / unbiased[0])


@dataclass(frozen=True)
class AdamSolver(Solver):
    """One Adam update a batch on ``samples`` noises' mean L-DRL loss (Ernoult et al. 2022, code).

    Attributes:
        noise: σ, standard deviation of ε and η; a number, or one per layer with feedback.
        lr: learning rate of ω.
        samples: draws of noise in an update.
        weight_decay: of ω.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> nn = torch.nn
        >>> net = tp.pair(nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)))
        >>> algo = tp.algorithms.LDRL(net, solver=tp.feedback.AdamSolver(samples=3))
        >>> algo.backward(torch.randn(8, 4), torch.randint(3, (8,))).feedback["fc_1"].iterations
        1
    """

    noise: PerLayer = 0.1
    lr: PerLayer = 3e-4
    samples: int = 10
    weight_decay: float = 1e-4
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
        """One update of ω; the reported loss is that before it."""
        sigma, lr = per_layer(self.noise, index, "noise"), per_layer(self.lr, index, "lr")
        loss, gradient = trace.input.new_zeros(()), torch.zeros_like(layer.omega)
        output = trace.output
        for _ in range(self.samples):
            e, h = (
                noise_like(a, generator, peers=peers).mul_(sigma) for a in (trace.input, output)
            )
            one, part = losses.ldrl(layer, trace, e, h)
            loss, gradient = loss + one / self.samples, gradient.add_(part, alpha=1 / self.samples)
        peers.mean_(loss, gradient)
        adam_step(layer.omega, gradient, memory, lr, self.weight_decay)
        return FeedbackReport(1, loss)
