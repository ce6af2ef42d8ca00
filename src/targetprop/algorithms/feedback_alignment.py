"""Errors instead of targets, carried by feedback weights of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from targetprop.algorithms.base import Loss, Report, output_error
from targetprop.algorithms.local import Local
from targetprop.feedback import Fixed, Solver
from targetprop.layers import Gradients, Layer, Trace, join_errors
from targetprop.pairing import Network


class FeedbackAlignment(Local):
    r"""Feedback alignment (Lillicrap et al. 2016): backprop with ω, fixed at random, where it has θ.

        eᴺ   =  ∂L/∂sᴺ                                  L the batch mean
        eⁿ⁻¹ =  A_ωᵀ S′ᵀ eⁿ                             S′ the slopes and winners of the layer
        ∇θⁿ  =  ∂⟨eⁿ, Fⁿ(sⁿ⁻¹; θⁿ)⟩/∂θⁿ

    With another solver ω learns: ``WeightMirror`` and ``KolenPollack``.
    """

    rule = "feedback_alignment"

    default_solver: Callable[[], Solver] = Fixed

    def __init__(
        self,
        net: Network,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for L-DRL, without β; the default solver is that of the class, here ``Fixed()``."""
        super().__init__(net, self.default_solver() if solver is None else solver, seed, loss, label_smoothing)

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Train the feedback path, if it learns, then add the layers' gradients to ``.grad``."""
        self.check(x)
        logits, traces = self._trace(x, not self.solver.reads_output)
        feedback = self.train_feedback(self.net.leaf_traces(traces))
        loss, error = output_error(self.loss, logits, y)
        learned = self._targets(traces, error / len(error), learn, Layer.carry_error, join_errors)
        self.accumulate(loss, learned)
        return Report(loss, logits, feedback)


def learn(layer: Layer, trace: Trace, error: Tensor) -> Gradients:
    """∂⟨e, F(x; θ)⟩/∂θ and on the bias."""
    return layer.gradients(trace, error)
