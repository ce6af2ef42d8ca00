"""Difference target propagation with feedback that never learns."""

from __future__ import annotations

from targetprop.algorithms.ldrl import LDRL
from targetprop.algorithms.losses import Loss
from targetprop.feedback import Fixed
from targetprop.laboratory.pairing import Network
from targetprop.properties import corrected


class FixedWeightDTP(LDRL):
    """FW-DTP (Shibuya et al. 2023): difference-corrected targets, ω as drawn; (a) does nothing."""

    papers = ("shibuya2023",)
    rows = (corrected("FixedWeightDTP", "as initialised", phases="targets"),)

    def __init__(
        self,
        net: Network,
        beta: float | None = None,
        loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):
        """As for L-DRL, without a solver and without noise."""
        super().__init__(net, beta, Fixed(), loss=loss, label_smoothing=label_smoothing)
