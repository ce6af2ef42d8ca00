"""The default way to learn ω: predict a layer's response to noise by ω, correct ω by the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Probe
from targetprop.feedback.solver import ProbeSolver
from targetprop.properties import corrected
from targetprop.seeds import mixed


@dataclass(frozen=True)
class PredictiveSolver(ProbeSolver):
    """Measure ‖r‖/‖a‖ of a = A_θ ε, r = a − A_ω ε; over ``tolerance``, move ω until r vanishes.

    The small-noise limit of L-DRL is ‖J_G − J_Fᵀ‖²_F up to a constant (Ernoult et al. 2022).
    Matched feedback has S′ᵀ exact in J_G = A_ωᵀS′ᵀ, so ‖A_ω − A_θ‖²_F = E‖r‖² is left, and ‖r‖/‖a‖
    *is* the mismatch ‖A_ω − A_θ‖_F/‖A_θ‖_F. The probe's noise makes its minimum an exact solve
    (``targetprop.feedback.patches``). A pre-activation responds linearly to ε: no small-noise limit
    is needed, and units that lose in pooling or are silent count. θ itself is not read, only a.

    With ``tracking`` the algorithm gives ω and θ the same local increments through the user's
    optimizer (Kolen–Pollack; Akrout et al. 2019): the mismatch that probes have removed stays
    removed, and probes are needed every ``probe_every`` batches and then ever more rarely, the
    layers in turn, or while the last mismatch was over ``tolerance``.

    Attributes:
        tolerance: the relative mismatch to keep; None for 0.01 with tracking, which holds it for
            nothing, and 0.02 without.
        tracking: give ω the increments of θ.
        probe_every: batches between a layer's first probes under tolerance; 1 without tracking.
        probe_every_at_most: up to which that interval doubles from probe to probe while the layer
            stays under tolerance.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> model = torch.nn.Linear(8, 4)
        >>> feedback = tp.attach(model, solver=tp.feedback.PredictiveSolver(tolerance=0.001))
        >>> feedback.mismatch()[""] < 0.001
        True
    """

    rows = (
        corrected(
            "LDRL(net)",
            "predicts the layer's response to noise through ω; "
            "ω gets the increments of θ (tracking)",
            symmetric="yes: ω both ways, shared increments",
            phases="probes (rarely), targets",
            passes="1 + about 0.1",
        ),
        corrected(
            "LDRL(net, solver=PredictiveSolver(tracking=False))",
            "predicts the response, without the increments",
            symmetric="yes: ω both ways",
            phases="probes, targets",
            passes="1.3 to 2",
        ),
    )

    tolerance: float | None = None
    tracking: bool = True
    probe_every: int = 10
    probe_every_at_most: int = 1000

    @property
    def limit(self) -> float:
        """The tolerance, chosen or not."""
        return (0.01 if self.tracking else 0.02) if self.tolerance is None else self.tolerance

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor | None:
        """Measure, and solve for ω where the mismatch is over tolerance."""
        shortest = self.probe_every if tracked and self.tracking else 1
        mismatch = math.inf if memory.probes == 0 else float(probe.mismatch(seed))
        memory.probes += 1
        if mismatch <= self.limit:
            memory.after(mismatch, self.limit, shortest, self.probe_every_at_most)
            return None
        step, before = probe.difference(seed)
        if not math.isfinite(before):  # ω is lost: from 0 on
            probe = probe.having(torch.zeros_like(probe.omega))
            step, before = probe.difference(seed)
        memory.after(float(before), self.limit, shortest, self.probe_every_at_most)
        omega = probe.omega + step
        memory.mismatch = float(probe.having(omega).mismatch(mixed(seed, 1)))
        return omega
