"""Credit assignment rules, one a file; all share ``algo.backward(x, y) -> Report``."""

from targetprop.algorithms.backprop import Backprop
from targetprop.algorithms.base import Algorithm, Report
from targetprop.algorithms.dtp import DTP
from targetprop.algorithms.fixed_weight_dtp import FixedWeightDTP
from targetprop.algorithms.ldrl import LDRL
from targetprop.algorithms.targetprop import TargetProp

ALGORITHMS = {
    "backprop": Backprop,
    "ldrl": LDRL,
    "dtp": DTP,
    "targetprop": TargetProp,
    "fixed_weight_dtp": FixedWeightDTP,
}

__all__ = ["ALGORITHMS", "DTP", "LDRL", "Algorithm", "Backprop", "FixedWeightDTP", "Report", "TargetProp"]
