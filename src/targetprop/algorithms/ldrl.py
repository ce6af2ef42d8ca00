"""Difference target propagation by the local difference reconstruction loss (L-DRL)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from targetprop import rules
from targetprop.algorithms.attached import AttachedAlgorithm
from targetprop.algorithms.base import Report, demand_explicit
from targetprop.algorithms.local import Local
from targetprop.algorithms.losses import Loss, check_beta, output_error
from targetprop.feedback import PredictiveSolver, Solver
from targetprop.laboratory.layers import Gradients, Layer, Trace
from targetprop.laboratory.pairing import Network


class AttachedLDRL(AttachedAlgorithm):
    """L-DRL on any module: what ``LDRL(module)`` makes."""

    rule_type = rules.LDRL


class LDRL(Local):
    r"""L-DRL (Ernoult et al. 2022).

    For a batch (x, y), layers sⁿ = Fⁿ(sⁿ⁻¹; θⁿ) and feedback layers Gⁿ(·; ωⁿ), n = 1..N:

        (a)  ωⁿ   ←  towards  J_Gⁿ = (J_Fⁿ)ᵀ                    each n ≥ 2 by itself, by the solver
        (b)  tᴺ   =  sᴺ − β ∂ℓ/∂sᴺ                              ℓ the loss of a sample
             tⁿ⁻¹ =  sⁿ⁻¹ + Gⁿ(tⁿ) − Gⁿ(sⁿ)                     difference correction
        (c)  ∇θⁿ  =  ∂/∂θⁿ  mean over the batch of ½‖Fⁿ(sⁿ⁻¹; θⁿ) − tⁿ‖² / β

    If (a) has reached J_Gⁿ = (J_Fⁿ)ᵀ, then (c) tends to the gradient of the loss as β → 0. The
    division by β, which the paper leaves to the learning rate, makes ``.grad`` an estimate of that
    gradient for any β.

    Attributes:
        beta: β, the nudging strength of the output target.
    """

    papers = ("ernoult2022",)
    rows = ()  # those of its solvers
    elsewhere = AttachedLDRL
    default_solver: Callable[[], Solver] = PredictiveSolver
    default_beta = 0.01
    """Small: what a finite nudge adds to the gradient grows with the weights; 0.1 diverged in long
    runs (docs/results.md).
    """

    def __init__(
        self,
        net: Network,
        beta: float | None = None,
        solver: Solver | None = None,
        seed: int = 0,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """Bind network, solver and loss.

        Args:
            net: the network.
            beta: β > 0; default that of the class, here 0.01.
            solver: default that of the class, here ``PredictiveSolver()``.
            seed: of the noise that trains the feedback.
            loss: as for every algorithm.
            label_smoothing: as for every algorithm.

        Raises:
            ValueError: β is not positive.
        """
        super().__init__(
            net, self.default_solver() if solver is None else solver, seed, loss, label_smoothing
        )
        self.beta = check_beta(self.default_beta if beta is None else beta)

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Train the feedback path on the batch; add the loss gradient's estimate to θ's ``.grad``.

        With a tracking solver ω receives the same increments of ``.grad`` as its θ.
        """
        self.check(x)
        demand_explicit(self.net, x)
        logits, traces = self.trace(x)
        feedback = self.train_feedback(self.net.leaf_traces(traces))  # (a)
        self.check_mean(logits, y)
        loss, error = output_error(self.loss, logits, y)
        learned = self.descend(traces, -self.beta * error, self.learn, self.carry)  # (b), (c)
        self.accumulate(loss, learned)
        return Report(loss, logits, feedback)

    def carry(self, layer: Layer, trace: Trace, difference: Tensor) -> Tensor:
        """(b): tⁿ⁻¹ − sⁿ⁻¹ from tⁿ − sⁿ."""
        return layer.difference(trace, difference)

    def learn(self, layer: Layer, trace: Trace, difference: Tensor) -> Gradients:
        """(c): the local gradients of one layer."""
        return layer.gradients(trace, difference, -1 / (self.beta * len(difference)))
