"""Target propagation whose feedback learns by the end-to-end difference reconstruction loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from targetprop.algorithms.base import Report, demand_explicit
from targetprop.algorithms.ldrl import LDRL
from targetprop.algorithms.losses import Loss, output_error
from targetprop.feedback import FeedbackReport, Fixed
from targetprop.feedback.adam import adam_step
from targetprop.feedback.solver import PerLayer, noise_like, per_layer
from targetprop.laboratory.layers import Layer, Trace
from targetprop.laboratory.pairing import Network
from targetprop.properties import corrected

Schedule = Literal["sequential", "parallel"]
"""ω learn before a batch's targets (the paper's s-) or after them, as if at the same time (p-)."""


def to_output(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The output of a chain of layers for x at its input."""
    for layer in layers:
        x = layer.trace(x).output
    return x


def from_output(leaves: Sequence[tuple[Layer, Trace]], d: Tensor) -> Tensor:
    """Carry the output's difference d down through ``leaves`` by difference-corrected feedback."""
    for layer, trace in reversed(leaves):
        d = layer.difference(trace, d)
    return d


def drl(
    leaves: Sequence[tuple[Layer, Trace]],
    logits: Tensor,
    e: Tensor,
    h: Tensor,
    sigma: float,
    damping: float,
) -> tuple[Tensor, Tensor]:
    """Difference reconstruction loss (Meulemans et al. 2020) of ``leaves[0]``; its gradient on ω.

    With x = sⁿ⁻¹ perturbed by ε, run to the output ŝᴺ, u and v what the differences ŝᴺ − sᴺ and η
    are at the layer's feedback map after they have come down through the layers above:

        L = mean over the batch of (‖A_ωᵀu − ε‖² + λ‖A_ωᵀv‖²)/σ²

    Its minimiser in a linear net is the damped pseudo-inverse Jᵀ(JJᵀ + λI)⁻¹ of the Jacobian J
    from sⁿ⁻¹ to the output.

    Args:
        leaves: the layer and those above it, up to the output, with their clean passes.
        logits: sᴺ.
        e: ε = σ·noise shaped like x.
        h: η = σ·noise shaped like the output.
        sigma: σ.
        damping: λ.
    """
    layer, trace = leaves[0]
    shape, batch = trace.input.shape, len(trace.input)
    lift = layer.stage.difference
    moved = to_output([la for la, _ in leaves], trace.input + e) - logits
    u = lift(trace.saved, trace.output, from_output(leaves[1:], moved))
    v = lift(trace.saved, trace.output, from_output(leaves[1:], h))
    missed, spilled = layer.feed_back(u, shape) - e, layer.feed_back(v, shape)
    correlate = layer.map.correlate
    gradient = correlate(u, missed, layer.omega.shape) + damping * correlate(
        v, spilled, layer.omega.shape
    )
    loss = (missed.square().sum() + damping * spilled.square().sum()) / (sigma**2 * batch)
    return loss, gradient * (2 / (sigma**2 * batch))


class DRL(LDRL):
    """Difference target propagation trained end to end (DTPDRL; Meulemans et al. 2020).

    As L-DRL but for (a): each ωⁿ learns by Adam to bring a perturbation of sⁿ⁻¹ back from the
    *output*, so that targets tend to those of Gauss–Newton. Not local: the loss of a layer needs
    all layers above it.

    Attributes:
        noise: σ.
        lr: learning rate of ω.
        iterations: K per layer and batch.
        damping: λ.
        weight_decay: of ω, in Adam; the usual stand-in for λ.
        schedule: ``"sequential"``, ω learns before the batch's targets; ``"parallel"``, after
            them, as if at the same time.
    """

    papers = ("meulemans2020",)
    rows = (
        corrected(
            "DRL",
            "brings noise back from the output (Meulemans et al. 2020)",
            local="no",
            phases="K noisy passes to the output and back, a layer at a time; targets",
            passes="1 + O(N K)",
        ),
    )

    splits_layers = False

    def __init__(
        self,
        net: Network,
        beta: float = 0.1,
        noise: PerLayer = 0.01,
        lr: PerLayer = 1e-3,
        iterations: int = 1,
        damping: float = 0.0,
        weight_decay: float = 6e-5,
        schedule: Schedule = "sequential",
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for L-DRL; settings of (a) are attributes, one number or one per layer with feedback.

        Raises:
            ValueError: the network has residual blocks, or an unknown schedule.
        """
        super().__init__(net, beta, Fixed(), seed, loss, label_smoothing)
        demand_chain(net, "DRL")
        self.noise, self.lr, self.iterations, self.damping = noise, lr, iterations, damping
        self.weight_decay, self.schedule = weight_decay, checked(schedule)

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """As L-DRL; with the parallel schedule (a) comes last."""
        self.check(x)
        demand_explicit(self.net, x)
        logits, traces = self.trace(x)
        leaves = self.net.leaf_traces(traces)
        feedback = self.reconstruct(leaves) if self.schedule == "sequential" else None
        loss, error = output_error(self.loss, logits, y)
        self.accumulate(loss, self.descend(traces, -self.beta * error, self.learn, self.carry))
        return Report(loss, logits, self.reconstruct(leaves) if feedback is None else feedback)

    def reconstruct(self, leaves: Sequence[tuple[Layer, Trace]]) -> dict[str, FeedbackReport]:
        """K updates of every ω, from the output down, on the difference reconstruction loss."""
        reports: dict[str, FeedbackReport] = {}
        trained = [i for i, (layer, _) in enumerate(leaves) if layer.has_feedback]
        logits = leaves[-1][1].output
        for index, i in reversed(list(enumerate(trained))):
            (layer, trace), name = leaves[i], self.net.names[i]
            sigma, lr = per_layer(self.noise, index, "noise"), per_layer(self.lr, index, "lr")
            memory, generator, loss = self.feedback_state[name], self.generators[name], None
            for _ in range(self.iterations):
                e, h = (
                    noise_like(a, generator, peers=self.ranks.data).mul_(sigma)
                    for a in (trace.input, logits)
                )
                loss, gradient = drl(leaves[i:], logits, e, h, sigma, self.damping)
                self.ranks.data.mean_(loss, gradient)
                adam_step(layer.omega, gradient, memory, lr, self.weight_decay)
            reports[name] = FeedbackReport(self.iterations, loss)
        return reports


def checked(schedule: Schedule) -> Schedule:
    """The schedule.

    Raises:
        ValueError: it is unknown.
    """
    if schedule not in ("sequential", "parallel"):
        raise ValueError(f"unknown schedule '{schedule}'; choose 'sequential' or 'parallel'.")
    return schedule


def demand_chain(net: Network, name: str) -> None:
    """Refuse a network with residual blocks.

    Raises:
        ValueError: it has one.
    """
    if not all(isinstance(block, Layer) for block in net.blocks):
        raise ValueError(
            f"{name} brings differences back through a chain of layers; this network has residual "
            "blocks."
        )
