"""Deep networks trained by difference target propagation with learned backprop targets."""

from targetprop import algorithms, analysis, data, feedback, models, ranks, rules
from targetprop.attach import Feedback, NotCovered, attach
from targetprop.citations import cite
from targetprop.laboratory import networks
from targetprop.laboratory.pairing import Network, pair
from targetprop.laboratory.refusals import PairingError
from targetprop.maps import register
from targetprop.models.plain import Sum

__version__ = "0.1.0"

__all__ = [
    "Feedback",
    "Network",
    "NotCovered",
    "PairingError",
    "Sum",
    "algorithms",
    "analysis",
    "attach",
    "cite",
    "data",
    "feedback",
    "models",
    "networks",
    "pair",
    "ranks",
    "register",
    "rules",
]
