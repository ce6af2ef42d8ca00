"""What is searched where the user does not say it."""

from __future__ import annotations

import inspect
import math
from typing import Any

from targetprop.algorithms import ALGORITHMS, AttachedAlgorithm
from targetprop.laboratory.networks import NETWORKS
from targetprop.training.check import settings_of, solver_name
from targetprop.training.config import Config
from targetprop.tuning.space import Choices, Range, Space


def default_space(base: Config) -> Space:
    """A space around a configuration: its rates, weight decay and, where it has one, β."""

    def around(value: float, points: int, most: float = math.inf) -> Range:
        return Range(value / 10, max(value, min(10 * value, most)), True, None, points)

    kind: Any = ALGORITHMS[base.algorithm.name]
    decay, taken, solver = base.optimizer.weight_decay, settings_of(kind), solver_name(base)
    found: Space = {"optimizer.lr": around(base.optimizer.lr, 5)}
    found["optimizer.weight_decay"] = (
        around(decay, 3) if decay else Choices((0.0, 1e-5, 1e-4, 1e-3))
    )
    if "beta" in taken and base.network.name in NETWORKS:  # elsewhere it vanishes
        signed = inspect.signature(kind.__init__).parameters.get("beta")
        own = (signed and signed.default) or getattr(kind, "default_beta", None)
        beta = base.algorithm.beta or own
        if isinstance(beta, float):
            found["algorithm.beta"] = around(beta, 3, 1.0)
    rate = getattr(getattr(base, solver, None), "lr", None) if solver else None
    if isinstance(rate, float):
        found[f"{solver}.lr"] = around(rate, 3)
    if "lr" in taken and not issubclass(kind, AttachedAlgorithm):
        found["drl.lr"] = around(base.drl.lr, 3)
    return found
