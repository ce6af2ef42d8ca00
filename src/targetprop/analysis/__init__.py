"""Measuring alignment and drawing it."""

from targetprop.analysis.alignment import (
    LayerAlignment,
    alignment,
    angle,
    distance,
    jacobian_mismatch,
)

__all__ = ["LayerAlignment", "alignment", "angle", "distance", "jacobian_mismatch"]
