"""Difference target propagation with feedback learned by the local difference reconstruction loss (L-DRL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from targetprop.algorithms.base import Algorithm, Loss, Report, generator_on, output_error
from targetprop.algorithms.tracking import TrackingWatch
from targetprop.feedback import FeedbackReport, PredictiveSolver, Solver
from targetprop.layers import Gradients, Layer, Trace
from targetprop.pairing import Network
from targetprop.streams import Beside, Reading


class LDRL(Algorithm):
    r"""L-DRL (Ernoult et al. 2022).

    For a batch (x, y), layers sⁿ = Fⁿ(sⁿ⁻¹; θⁿ) and feedback layers Gⁿ(·; ωⁿ), n = 1..N:

        (a)  ωⁿ   ←  towards  J_Gⁿ = (J_Fⁿ)ᵀ                            each n ≥ 2 by itself, by the solver
        (b)  tᴺ   =  sᴺ − β ∂ℓ/∂sᴺ                                      ℓ the loss of a sample
             tⁿ⁻¹ =  sⁿ⁻¹ + Gⁿ(tⁿ) − Gⁿ(sⁿ)                             difference correction
        (c)  ∇θⁿ  =  ∂/∂θⁿ  mean over the batch of ½‖Fⁿ(sⁿ⁻¹; θⁿ) − tⁿ‖² / β

    If (a) has reached J_Gⁿ = (J_Fⁿ)ᵀ, then (c) tends to the gradient of the loss as β → 0. The division by β, which the paper
    leaves to the learning rate, makes ``.grad`` an estimate of that gradient for any β.

    Attributes:
        solver: how ω is learned.
        beta: β, the nudging strength of the output target.
        feedback_state: per layer name, what the solver remembers.

    """

    reads_output = False
    """Whether ``feed_back`` reads the values of ``trace.output`` where no stage follows the linear map."""

    def __init__(
        self,
        net: Network,
        beta: float = 0.1,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """Bind network, solver and loss.

        Args:
            net: the network.
            beta: β > 0.
            solver: default ``PredictiveSolver()``.
            seed: of the noise that trains the feedback.
            loss: as for every algorithm.
            label_smoothing: as for every algorithm.

        Raises:
            ValueError: β is not positive.

        """
        super().__init__(net, loss, label_smoothing)
        if not beta > 0:
            raise ValueError(f"beta={beta} is not positive; targets need a nudge, such as beta=0.1.")
        self.beta = beta
        self.solver = PredictiveSolver() if solver is None else solver
        self.feedback_state: dict[str, dict[str, Any]] = {}
        self._generator = generator_on(next(net.parameters()).device, seed)
        self._watch = TrackingWatch(net) if self.solver.tracking else None
        self._reading = Reading({})
        self._trace, self._targets = net.trace, net.targets

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Train the feedback path on the batch, then add the estimate of the loss gradient to ``.grad`` of θ.

        With a tracking solver ω receives the same increments of ``.grad`` as its θ.
        """
        if self._watch:
            self._watch.check()
        logits, traces = self._trace(x, not (self.reads_output or self.solver.reads_output))
        feedback = self.train_feedback(self.net.leaf_traces(traces))  # (a)
        loss, error = output_error(self.loss, logits, y)
        learned = self._targets(traces, -self.beta * error, self.learn, self.feed_back)  # (b), (c)
        for layer, gradients in zip(self.net.layers, learned, strict=True):
            layer.accumulate(gradients, self.solver.tracking)
        if self._watch:
            self._watch.record()
        return Report(loss, logits, feedback)

    def train_feedback(self, leaves: Sequence[tuple[Layer, Trace]]) -> dict[str, FeedbackReport]:
        """(a): one call of the solver for every layer with feedback; the layers are independent."""
        self.settle()
        reports: dict[str, FeedbackReport] = {}
        beside = Beside(leaves[0][1].input.device)
        for name, (layer, trace) in zip(self.net.names, leaves, strict=True):
            if layer.feedback_map is not None:
                state = self.feedback_state.setdefault(name, {})
                with beside.piece():
                    reports[name] = self.solver.train(len(reports), layer, trace, state, self._generator)
        beside.join()
        probed = {name: r.mismatch for name, r in reports.items() if r.iterations and r.mismatch is not None}
        self._reading = Reading(probed)
        return reports

    def settle(self) -> None:
        """Hand every solver the mismatch that its last probe found, on its way to the host since."""
        for name, mismatch in self._reading.floats().items():
            self.feedback_state[name]["mismatch"] = mismatch
        self._reading = Reading({})

    def feed_back(self, layer: Layer, trace: Trace, difference: Tensor) -> Tensor:
        """(b): tⁿ⁻¹ − sⁿ⁻¹ from tⁿ − sⁿ."""
        return layer.difference(trace, difference)

    def learn(self, layer: Layer, trace: Trace, difference: Tensor) -> Gradients:
        """(c): the local gradients of one layer."""
        return layer.gradients(trace, difference, -1 / (self.beta * len(difference)))

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse the forward pass, and (b) with (c); the solvers' probes stay as they are.

        Args:
            mode: torch.compile's; not one with CUDA graphs, which would overwrite ``.grad`` and the report's logits.

        """
        self._trace = torch.compile(self.net.trace, mode=mode)
        self._targets = torch.compile(self.net.targets, mode=mode)

    def state_dict(self) -> dict[str, Any]:
        """The solver's memory of every layer and the state of the noise generator."""
        self.settle()
        feedback = {name: _copied(memory) for name, memory in self.feedback_state.items()}
        return {"feedback": feedback, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._reading = Reading({})
        device = next(self.net.parameters()).device
        self.feedback_state = {name: _copied(memory, device) for name, memory in state["feedback"].items()}
        self._generator.set_state(state["generator"].cpu())


def _copied(memory: dict[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """A copy of a solver's memory that shares no tensor with it."""
    return {k: v.to(device or v.device, copy=True) if isinstance(v, Tensor) else v for k, v in memory.items()}
