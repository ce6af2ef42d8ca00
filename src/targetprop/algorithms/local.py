"""What algorithms with a feedback path share: the solver, its memory, the compiled passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from targetprop.algorithms.base import Algorithm, generator_on
from targetprop.algorithms.losses import Loss
from targetprop.algorithms.sharing import Sharing
from targetprop.algorithms.tracking import Tracking
from targetprop.feedback import FeedbackReport, Solver
from targetprop.feedback.memory import Memory
from targetprop.laboratory.layers import Layer, Trace
from targetprop.laboratory.pairing import Network
from targetprop.laboratory.streams import Beside
from targetprop.ranks import Ranks


class Local(Algorithm):
    """An algorithm whose layers learn from what a feedback path with its own weights ω brings.

    Attributes:
        solver: how ω is learned.
        feedback_state: per name of a layer with feedback, what the solver remembers.
        generators: likewise, the source of its noise.
        trace: the pass up, compiled or not.
        descend: the pass down, compiled or not.
    """

    splits_layers = True

    def __init__(
        self,
        net: Network,
        solver: Solver,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """Bind network, solver and loss; ``seed`` is of the noise that trains the feedback."""
        super().__init__(net, loss, label_smoothing)
        self.solver = solver
        device = next(net.parameters()).device
        self._trained = {
            name: la for name, la in zip(net.names, net.layers, strict=True) if la.has_feedback
        }
        solver.check_layers(len(self._trained))
        self.feedback_state = {name: Memory() for name in self._trained}
        self.generators = {
            name: generator_on(device, seed, i) for i, name in enumerate(self._trained)
        }
        self._sharing = Sharing(self.ranks, self._trained)
        self._tracking = Tracking(net) if solver.tracking else None
        self.trace, self.descend = net.trace, net.descend

    def distribute(self, ranks: Ranks) -> None:
        """As for every algorithm; the layers' feedback is shared out over ``ranks.layers``."""
        super().distribute(ranks)
        self._sharing = Sharing(ranks, self._trained)

    def train_feedback(self, leaves: Sequence[tuple[Layer, Trace]]) -> dict[str, FeedbackReport]:
        """One call of the solver for each of this process's layers with feedback, independently."""
        reports: dict[str, FeedbackReport] = {}
        device, traces = leaves[0][1].input.device, dict(zip(self.net.names, leaves, strict=True))
        beside = Beside(device)
        for index, name in enumerate(self._trained):
            if self._sharing.mine(name):
                memory = self.feedback_state[name], self.generators[name]
                with beside.piece(), self._sharing.timed(name, device):
                    reports[name] = self.solver.train(
                        index, *traces[name], *memory, self.ranks.data
                    )
        beside.join()
        self._sharing.exchange(
            self._trained, [name for name, report in reports.items() if report.iterations]
        )
        if self._sharing.measured:
            memory = self.state_dict()
            self._sharing.assign_anew()
            self.load_state_dict(memory)
        return reports

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse the passes up and down; the solvers' probes stay as they are.

        Args:
            mode: torch.compile's; CUDA graphs would overwrite ``.grad`` and the report's logits.
        """
        self.trace = torch.compile(self.net.trace, mode=mode)
        self.descend = torch.compile(self.net.descend, mode=mode)

    def state_dict(self) -> dict[str, Any]:
        """Every layer's solver memory and noise generator state, from whoever trains the layer."""
        device = None if self.ranks.layers.size == 1 else torch.device("cpu")
        feedback, generators = {}, {}
        for memories, states in self.ranks.layers.gather(
            (
                {
                    n: memory.state_dict(device)
                    for n, memory in self.feedback_state.items()
                    if self._sharing.mine(n)
                },
                {
                    n: generator.get_state()
                    for n, generator in self.generators.items()
                    if self._sharing.mine(n)
                },
            )
        ):
            feedback |= memories
            generators |= states
        return {"feedback": feedback, "generators": generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        device = next(self.net.parameters()).device
        for name, memory in self.feedback_state.items():
            sizes = {p.numel() for p in self._trained[name].parameters()}
            memory.load_state_dict(state["feedback"][name], sizes, device)
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())
