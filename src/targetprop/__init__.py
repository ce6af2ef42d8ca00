"""Deep networks trained by difference target propagation with learned backprop targets."""

from typing import TYPE_CHECKING, Any

from targetprop import algorithms, analysis, data, feedback, models, ranks, rules
from targetprop.attach import Feedback, NotCovered, attach
from targetprop.citations import cite
from targetprop.laboratory import networks
from targetprop.laboratory.pairing import Network, pair
from targetprop.laboratory.refusals import PairingError
from targetprop.maps import register
from targetprop.models.plain import Sum

if TYPE_CHECKING:
    from targetprop.training.export import load_network

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load_network``, with what it needs, when it is asked for."""
    if name == "load_network":
        from targetprop.training.export import load_network

        return load_network
    raise AttributeError(f"module 'targetprop' has no attribute {name!r}")


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
    "load_network",
    "models",
    "networks",
    "pair",
    "ranks",
    "register",
    "rules",
]
