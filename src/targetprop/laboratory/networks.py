"""The networks of ``targetprop.models.plain``, paired with feedback.

Each takes what its plain one does, and ``feedback``:
``name(in_shape, classes, channels=..., activation="elu", bias=True, feedback="matched")``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from targetprop.laboratory.activations import Feedback
from targetprop.laboratory.pairing import Network, pair
from targetprop.models import plain


def paired(make: Callable[..., nn.Sequential]) -> Callable[..., Network]:
    """``make``, paired: its signature with ``feedback`` (``"matched"`` or ``"mirror"``) behind."""

    @functools.wraps(make)
    def made(*args: Any, feedback: Feedback = "matched", **settings: Any) -> Network:
        return pair(make(*args, **settings), feedback)

    shown: Any = made
    own = inspect.signature(make).parameters.values()
    extra = inspect.Parameter(
        "feedback", inspect.Parameter.KEYWORD_ONLY, default="matched", annotation=Feedback
    )
    shown.__signature__ = inspect.Signature([*own, extra], return_annotation=Network)
    return made


NETWORKS = {name: paired(make) for name, make in plain.NETWORKS.items()}
mlp, lenet, simple_vgg, chain, resnet18, resnet34 = NETWORKS.values()
