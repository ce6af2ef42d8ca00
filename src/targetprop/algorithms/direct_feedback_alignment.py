"""The output error, broadcast to every layer through fixed random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from targetprop.algorithms.base import Algorithm, Loss, Report, generator_on, output_error
from targetprop.algorithms.local import copied
from targetprop.pairing import Network


class DirectFeedbackAlignment(Algorithm):
    r"""Direct feedback alignment (Nøkland 2016).

        eⁿ  =  Bⁿ ∂L/∂sᴺ,  eᴺ = ∂L/∂sᴺ                  Bⁿ fixed, uniform within ±1/√classes
        ∇θⁿ =  ∂⟨eⁿ, Fⁿ(sⁿ⁻¹; θⁿ)⟩/∂θⁿ

    Attributes:
        directs: Bⁿ per layer name, of shape (outputs of the net, outputs of the layer); drawn on the first batch.

    """

    rule = "direct_feedback_alignment"

    def __init__(self, net: Network, seed: int = 0, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0):
        """As for every algorithm; ``seed`` is that of the Bⁿ."""
        super().__init__(net, loss, label_smoothing)
        self.directs: dict[str, Tensor] = {}
        self._generator = generator_on(next(net.parameters()).device, seed)
        self._trace = net.trace

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Add the layers' gradients to ``.grad``."""
        self.check(x)
        logits, traces = self._trace(x)
        loss, error = output_error(self.loss, logits, y)
        error = error / len(error)
        leaves, learned = self.net.leaf_traces(traces), []
        for name, (layer, trace) in zip(self.net.names[:-1], leaves[:-1], strict=True):
            if name not in self.directs:
                shape = (error[0].numel(), trace.output[0].numel())
                self.directs[name] = error.new_empty(shape).uniform_(-1, 1, generator=self._generator) / math.sqrt(shape[0])
            carried = (error.flatten(1) @ self.directs[name]).view_as(trace.output)
            learned.append(layer.gradients(trace, carried))
        layer, trace = leaves[-1]
        learned.append(layer.gradients(trace, error))
        self.accumulate(loss, learned)
        return Report(loss, logits)

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse the forward pass."""
        self._trace = torch.compile(self.net.trace, mode=mode)

    def state_dict(self) -> dict[str, Any]:
        """The Bⁿ and the state of their generator."""
        return {"directs": copied(self.directs), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.directs = copied(state["directs"], next(self.net.parameters()).device)
        self._generator.set_state(state["generator"].cpu())
