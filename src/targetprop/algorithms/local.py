"""What the algorithms with a feedback path share: the solver, what it remembers, and the compiled passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from targetprop.algorithms.base import Algorithm, Loss, generator_on
from targetprop.algorithms.tracking import TrackingWatch
from targetprop.feedback import FeedbackReport, Solver
from targetprop.layers import Gradients, Layer, Trace
from targetprop.pairing import Network
from targetprop.streams import Beside, Reading


class Local(Algorithm):
    """An algorithm whose layers learn from what a feedback path with weights ω of its own brings them.

    Attributes:
        solver: how ω is learned.
        feedback_state: per layer name, what the solver remembers.

    """

    def __init__(
        self, net: Network, solver: Solver, seed: int = 0, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0
    ):
        """Bind network, solver and loss; ``seed`` is of the noise that trains the feedback."""
        super().__init__(net, loss, label_smoothing)
        self.solver = solver
        self.feedback_state: dict[str, dict[str, Any]] = {}
        self._generator = generator_on(next(net.parameters()).device, seed)
        self._watch = TrackingWatch(net) if solver.tracking else None
        self._reading = Reading({})
        self._trace, self._targets = net.trace, net.targets

    def accumulate(self, learned: Sequence[Gradients]) -> None:
        """Add every layer's gradients to ``.grad``, with a tracking solver θ's to that of ω as well."""
        for layer, gradients in zip(self.net.layers, learned, strict=True):
            layer.accumulate(gradients, self.solver.tracking)
        if self._watch:
            self._watch.record()

    def train_feedback(self, leaves: Sequence[tuple[Layer, Trace]]) -> dict[str, FeedbackReport]:
        """One call of the solver for every layer with feedback; the layers are independent."""
        if self._watch:
            self._watch.check()
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

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse the forward pass, and the way back; the solvers' probes stay as they are.

        Args:
            mode: torch.compile's; not one with CUDA graphs, which would overwrite ``.grad`` and the report's logits.

        """
        self._trace = torch.compile(self.net.trace, mode=mode)
        self._targets = torch.compile(self.net.targets, mode=mode)

    def state_dict(self) -> dict[str, Any]:
        """The solver's memory of every layer and the state of the noise generator."""
        self.settle()
        feedback = {name: copied(memory) for name, memory in self.feedback_state.items()}
        return {"feedback": feedback, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._reading = Reading({})
        device = next(self.net.parameters()).device
        self.feedback_state = {name: copied(memory, device) for name, memory in state["feedback"].items()}
        self._generator.set_state(state["generator"].cpu())


def copied(memory: dict[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """A copy of a solver's memory that shares no tensor with it."""
    return {k: v.to(device or v.device, copy=True) if isinstance(v, Tensor) else v for k, v in memory.items()}
