"""Target propagation without the difference correction."""

from __future__ import annotations

from torch import Tensor

from targetprop.algorithms.dtp import DTP
from targetprop.laboratory.layers import Layer, Trace
from targetprop.properties import Row


class TargetProp(DTP):
    """Target propagation (Bengio 2014; Lee et al. 2015): tⁿ⁻¹ = Gⁿ(tⁿ), feedback learned as in DTP.

    In a residual block a layer's target is its own feedback's; both arms' differences are summed.
    """

    papers = ("bengio2014", "lee2015")
    rows = (
        Row(
            "TargetProp",
            "denoising auto-encoder (Bengio 2014)",
            carries="target",
            phases="K noisy passes, targets",
            passes="1 + K",
        ),
    )

    def carry(self, layer: Layer, trace: Trace, difference: Tensor) -> Tensor:
        """Gⁿ(tⁿ) − sⁿ⁻¹."""
        return layer.reconstruct(trace, trace.output + difference) - trace.input
