"""Which process trains which layer's feedback, where several share out the layers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from targetprop.laboratory.layers import Layer
from targetprop.ranks import Ranks


def assign(costs: Mapping[str, float], size: int) -> dict[str, int]:
    """A process per layer: the costliest first, to whoever has the least so far (Graham 1969)."""
    loads = [0.0] * size
    owners = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += costs[name]
    return owners


class Sharing:
    """The assignment: first by number of weights, then by the times measured on the second batch.

    The first batch is not typical: solvers calibrate on it. Results do not depend on the
    assignment, since every layer has a noise generator of its own.
    """

    def __init__(self, ranks: Ranks, layers: Mapping[str, Layer]):
        """Share ``layers``, those with feedback, by name, out over ``ranks.layers``."""
        self.ranks = ranks
        self.owners = assign(
            {name: layer.omega.numel() for name, layer in layers.items()}, ranks.layers.size
        )
        self._batches = 0
        self._seconds: dict[str, float] = {}

    def mine(self, name: str) -> bool:
        """Whether this process trains the layer's feedback."""
        return self.owners[name] == self.ranks.layers.rank

    @contextmanager
    def timed(self, name: str, device: torch.device) -> Iterator[None]:
        """Around the training of a layer's feedback on a batch."""
        if self.ranks.layers.size == 1 or self._batches != 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._seconds[name] = time.perf_counter() - began

    def exchange(self, layers: Mapping[str, Layer], changed: Sequence[str]) -> None:
        """Bring everyone this process's feedback weights of ``changed`` layers, once a batch."""
        group = self.ranks.layers
        if group.size == 1:
            return
        for source, names in enumerate(group.gather(list(changed))):
            group.broadcast_(
                source, *(p.data for name in names for p in layers[name].feedback_parameters())
            )
        self._batches += 1

    @property
    def measured(self) -> bool:
        """Whether the second batch has just been timed, so that the layers can be assigned anew."""
        return self._batches == 2

    def assign_anew(self) -> None:
        """By measured times; memory must then move to the new owners."""
        seconds: dict[str, float] = {}
        for found in self.ranks.world.gather(self._seconds):
            for name, value in found.items():
                seconds[name] = seconds.get(name, 0.0) + value
        self.owners, self._seconds = assign(seconds, self.ranks.layers.size), {}
        self._batches += 1
