"""What a solver remembers of one layer between probes, and when the next probe is due."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**62
"""What no count of steps or probes exceeds."""


@dataclass
class Memory:
    """The state of one layer's solver: everything a resumed run needs beside ω.

    Attributes:
        probes: probes, or updates of ω, so far; they number the noise.
        wait: steps until the next one is due.
        interval: steps between the last probe and that one.
        mismatch: as last measured; infinite before.
        tensors: the solver's own, by name: a running correlation, a momentum, auxiliary weights.
    """

    probes: int = 0
    wait: int = 0
    interval: int = 0
    mismatch: float = math.inf
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def tick(self) -> bool:
        """One step has passed: whether to probe now."""
        self.wait -= 1
        return self.wait <= 0

    def after(self, mismatch: float, tolerance: float, shortest: int, longest: int) -> None:
        """Wait one step over tolerance, else as long as last time, or twice as long.

        Doubled under a quarter of the tolerance, it finds a steadily drifting ω soon after that.
        The first wait is the shortest one.
        """
        self.mismatch = mismatch
        if self.interval == 0:
            self.interval = shortest
        elif not mismatch <= tolerance:
            self.interval = 1
        elif mismatch <= tolerance / 4:
            self.interval = min(2 * self.interval, longest)
        self.wait = self.interval

    def state_dict(self, device: torch.device | None = None) -> dict[str, Any]:
        """Plain numbers and copies of the tensors, on ``device`` where one is given."""
        return {
            **vars(self),
            "mismatch": math.inf if math.isnan(self.mismatch) else self.mismatch,
            "tensors": {k: v.to(device or v.device, copy=True) for k, v in self.tensors.items()},
        }

    def load_state_dict(
        self, state: dict[str, Any], sizes: Container[int], device: torch.device | None = None
    ) -> None:
        """Restore what :meth:`state_dict` gave; every tensor is as large as some weights.

        Raises:
            ValueError: it cannot have been that.
        """
        counts = [state[name] for name in ("probes", "wait", "interval")]
        tensors = list(state["tensors"].values())
        fine = all(type(n) is int and abs(n) <= LARGEST for n in counts)
        fine = fine and min(state["probes"], state["interval"]) >= 0
        if not fine or type(state["mismatch"]) is not float or math.isnan(state["mismatch"]):
            raise ValueError(f"{counts} and {state['mismatch']} are no counts and no mismatch")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise ValueError("a solver's tensor is not finite")
        if odd := [tuple(tensor.shape) for tensor in tensors if tensor.numel() not in sizes]:
            raise ValueError(f"a solver's tensor of {odd[0]} belongs to no weights of the layer")
        vars(self).update({name: state[name] for name in vars(self)})
        self.tensors = {k: v.to(device or v.device, copy=True) for k, v in state["tensors"].items()}
