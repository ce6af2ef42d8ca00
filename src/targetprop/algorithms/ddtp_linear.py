"""Linear feedback from the output to every hidden layer, by the difference reconstruction loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from targetprop.algorithms.base import Algorithm, Report, demand_explicit, generator_on
from targetprop.algorithms.drl import Schedule, checked, demand_chain, to_output
from targetprop.algorithms.losses import Loss, check_beta, output_error
from targetprop.feedback import FeedbackReport
from targetprop.feedback.adam import adam_step
from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import noise_like
from targetprop.laboratory.layers import Gradients, Layer, Trace
from targetprop.laboratory.pairing import Network
from targetprop.properties import Row


def direct_drl(q: Tensor, moved: Tensor, e: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """mean over the batch of ‖Q Δ − ε‖²/σ² and its gradient on Q; Δ = ŝᴺ − sᴺ, rows are samples."""
    missed = moved @ q - e
    scale = 1 / (sigma**2 * len(e))
    return missed.square().sum() * scale, moved.T @ missed * (2 * scale)


class DDTPLinear(Algorithm):
    r"""DDTP-linear (Meulemans et al. 2020).

        tᴺ  =  sᴺ − β ∂ℓ/∂sᴺ,     tⁿ  =  sⁿ + Qⁿ(tᴺ − sᴺ)       hidden layers n < N
        Qⁿ  descends, by Adam,  ‖Qⁿ(ŝᴺ − sᴺ) − σε‖²/σ²         ŝᴺ the output, sⁿ perturbed by σε
        ∇θⁿ =  ∂/∂θⁿ  mean over the batch of ½‖Fⁿ(sⁿ⁻¹; θⁿ) − tⁿ‖² / β

    Attributes:
        directs: Qⁿ per layer name, (net outputs, layer outputs) in shape; drawn on the first batch.
    """

    papers = ("meulemans2020",)
    rows = (
        Row(
            "DDTPLinear",
            "brings noise back from the output, linearly",
            carries="target, straight from the output",
            local="no",
            phases="K noisy passes to the output, a layer at a time; targets",
            passes="1 + O(N K)",
        ),
    )

    def __init__(
        self,
        net: Network,
        beta: float = 0.1,
        noise: float = 0.01,
        lr: float = 1e-3,
        iterations: int = 1,
        weight_decay: float = 6e-5,
        schedule: Schedule = "sequential",
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """Settings as for DRL.

        Raises:
            ValueError: β is not positive, an unknown schedule, or the network has residual blocks.
        """
        super().__init__(net, loss, label_smoothing)
        demand_chain(net, "DDTPLinear")
        self.beta = check_beta(beta)
        self.noise, self.lr, self.iterations, self.weight_decay = (
            noise,
            lr,
            iterations,
            weight_decay,
        )
        self.schedule = checked(schedule)
        self.directs: dict[str, Tensor] = {}
        self.memory: dict[str, Memory] = {}
        self._generator = generator_on(next(net.parameters()).device, seed)
        self.trace = net.trace

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Train the direct feedback on the batch, then add the layers' gradients to ``.grad``."""
        self.check(x)
        demand_explicit(self.net, x)
        logits, traces = self.trace(x)
        leaves = self.net.leaf_traces(traces)
        loss, error = output_error(self.loss, logits, y)
        nudge, reports, learned = -self.beta * error, {}, []
        for i, (name, (layer, trace)) in enumerate(
            zip(self.net.names[:-1], leaves[:-1], strict=True)
        ):
            if self.schedule == "parallel":
                learned.append(
                    self.learn(layer, trace, (nudge @ self.direct(i, leaves)).view_as(trace.output))
                )
            found = [self.reconstruct(i, leaves) for _ in range(self.iterations)]
            reports[name] = FeedbackReport(self.iterations, found[-1] if found else None)
            if self.schedule == "sequential":
                learned.append(
                    self.learn(layer, trace, (nudge @ self.direct(i, leaves)).view_as(trace.output))
                )
        self.accumulate(loss, [*learned, self.learn(leaves[-1][0], leaves[-1][1], nudge)])
        return Report(loss, logits, reports)

    def direct(self, i: int, leaves: Sequence[tuple[Layer, Trace]]) -> Tensor:
        """Qⁿ of layer i of ``leaves``, the network's; drawn (Xavier) if there is none yet."""
        name, logits = self.net.names[i], leaves[-1][1].output
        if name not in self.directs:
            shape = (logits[0].numel(), leaves[i][1].output[0].numel())
            bound = (6 / sum(shape)) ** 0.5
            self.directs[name] = logits.new_empty(shape).uniform_(
                -bound, bound, generator=self._generator
            )
        return self.directs[name]

    def reconstruct(self, i: int, leaves: Sequence[tuple[Layer, Trace]]) -> Tensor:
        """One update of layer i's Qⁿ on the difference reconstruction loss; the loss before it."""
        q, (_, trace), logits = self.direct(i, leaves), leaves[i], leaves[-1][1].output
        e = noise_like(trace.output, self._generator, peers=self.ranks.data).mul_(self.noise)
        moved = to_output([layer for layer, _ in leaves[i + 1 :]], trace.output + e) - logits
        loss, gradient = direct_drl(q, moved, e.flatten(1), self.noise)
        self.ranks.data.mean_(loss, gradient)
        adam_step(
            q,
            gradient,
            self.memory.setdefault(self.net.names[i], Memory()),
            self.lr,
            self.weight_decay,
        )
        return loss

    def learn(self, layer: Layer, trace: Trace, difference: Tensor) -> Gradients:
        """The gradients of ½‖F(x) − t‖²/β."""
        return layer.gradients(trace, difference, -1 / (self.beta * len(difference)))

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse the forward pass."""
        self.trace = torch.compile(self.net.trace, mode=mode)

    def state_dict(self) -> dict[str, Any]:
        """The Qⁿ, Adam's memory of them and the state of the noise generator."""
        return {
            "directs": {name: q.clone() for name, q in self.directs.items()},
            "memory": {name: memory.state_dict() for name, memory in self.memory.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore all three."""
        device = next(self.net.parameters()).device
        self.directs = {name: q.to(device, copy=True) for name, q in state["directs"].items()}
        self.memory = {name: Memory() for name in state["memory"]}
        for name, memory in self.memory.items():
            memory.load_state_dict(state["memory"][name], {self.directs[name].numel()}, device)
        self._generator.set_state(state["generator"].cpu())
