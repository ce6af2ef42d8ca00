"""Difference target propagation with auto-encoding feedback."""

from __future__ import annotations

from targetprop.algorithms.ldrl import LDRL
from targetprop.feedback import ReconstructionSolver
from targetprop.properties import corrected


class DTP(LDRL):
    """Difference target propagation (Lee et al. 2015).

    As L-DRL but for (a): each feedback layer learns to reconstruct x = sⁿ⁻¹ + ε by minimising
    ‖Gⁿ(Fⁿ(x)) − x‖², so that its Jacobian tends to the *inverse* of the forward layer's where one
    exists, not to its transpose. The default solver is ``ReconstructionSolver()``.
    """

    papers = ("lee2015",)
    rows = (
        corrected(
            "DTP",
            "denoising auto-encoder (Lee et al. 2015)",
            phases="K noisy passes, targets",
            passes="1 + K",
        ),
    )

    default_solver = ReconstructionSolver
    default_beta = 0.1
