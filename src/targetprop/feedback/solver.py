"""What a feedback solver is: settings, and one method that moves a layer's ω by local signals."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Field, Patch, Probe
from targetprop.laboratory.layers import Layer, Trace
from targetprop.maps import Conv2dMap, DenseMap, Reduced, memory_format
from targetprop.ranks import ALONE, Group
from targetprop.seeds import mixed

PerLayer = float | Sequence[float]


COUNTS = {"iterations", "first_iterations", "samples", "window", "draws"} | {
    "probe_every", "probe_every_at_most"
}  # fmt: skip


def check_range(owner: str, name: str, value: Any, kind: str) -> None:
    """Refuse a solver's setting, or one of its list, that cannot be.

    Args:
        owner: whose setting.
        name: of the setting.
        value: of the setting.
        kind: its annotation; one that names neither numbers nor truth is its class's own affair.

    Raises:
        ValueError: it is of another kind, or out of range; the sentence says what is expected.
    """
    if "bool" in kind and not isinstance(value, bool):
        raise ValueError(f"{owner}: {name}={value!r} is neither True nor False.")
    numeric = any(word in kind for word in ("int", "float", "PerLayer"))
    if not numeric or (value is None and "None" in kind):
        return
    many = isinstance(value, (list, tuple))
    if many and "PerLayer" not in kind and "tuple" not in kind:
        raise ValueError(f"{owner}: {name}={value} is a list; expected one number.")
    for number in value if many else (value,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            held = f" holds {number!r}, which" if many else ""
            raise ValueError(f"{owner}: {name}={value!r}{held} is no number.")
        if name in COUNTS:
            whole = 1 <= number < math.inf and number == int(number)
            fine, expected = whole, "a whole number from 1 on"
        elif name in ("momentum", "decay"):
            fine, expected = 0 <= number < 1, "a number in [0, 1)"
        elif name in ("noise", "lr"):
            fine, expected = 0 < number < math.inf, "a positive number"
        else:
            fine, expected = number >= 0, "at least 0"
        if not fine:
            raise ValueError(f"{owner}: {name}={value} is out of range; expected {expected}.")


def check_fields(owner: str, settings: Any) -> None:
    """Refuse a dataclass of settings of which one cannot be, as ``check_range`` does."""
    for field in fields(settings):
        check_range(owner, field.name, getattr(settings, field.name), str(field.type))


@dataclass(frozen=True)
class FeedbackReport:
    """What a solver did to one layer on one batch.

    Attributes:
        iterations: how many probes, each an update of ω or a measurement that it needs none.
        loss: the feedback loss before the last update, where the solver has one.
        mismatch: ‖A_ω − A_θ‖_F/‖A_θ‖_F as last measured, where the solver measures it.
    """

    iterations: int
    loss: Tensor | None = None
    mismatch: float | None = None


class Solver(ABC):
    """A feedback solver: frozen hyper-parameters; what it remembers is in the caller's ``memory``.

    Attributes:
        tracking: whether ω receives the increments of θ as well.
    """

    tracking: bool

    def __post_init__(self):
        """Refuse settings out of range."""
        if is_dataclass(self):
            check_fields(type(self).__name__, self)

    def check_layers(self, count: int) -> None:
        """Refuse lists of settings that do not go with ``count`` layers with feedback."""
        for name, value in vars(self).items():
            if count and isinstance(value, (list, tuple)):
                per_layer(value, count - 1, name)

    @abstractmethod
    def train(
        self,
        index: int,
        layer: Layer,
        trace: Trace,
        memory: Memory,
        generator: Generator,
        peers: Group = ALONE,
    ) -> FeedbackReport:
        """Move ``layer.omega`` in place.

        Args:
            index: the layer's place among those with feedback, input to output; picks its settings.
            layer: the layer, its forward weights fixed.
            trace: the layer's clean pass of the batch.
            memory: this layer's, between calls.
            generator: source of the noise, on the layer's device; in the same state on all peers.
            peers: the processes with the other parts of the batch; ω learns from all parts.
        """


class ProbeSolver(Solver):
    """A solver that sees of a layer only how its linear map answers to noise.

    It serves any module (``targetprop.attach``) and the layers of ``targetprop.pair`` alike, and
    takes no batch: peers probe with the same noise and find the same ω.

    Attributes:
        learns: whether it ever moves ω.
        limit: the mismatch that it keeps; infinite where it knows of none.
        probe_every: steps between a map's first probes.
        probe_every_at_most: up to which that interval grows.
    """

    learns = True
    limit: Any = math.inf
    probe_every = 1
    probe_every_at_most = 1

    @abstractmethod
    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor | None:
        """The new ω of a map whose probe is due, None to keep it; counts its probes in ``memory``.

        Args:
            probe: the map and its ω as they are now.
            memory: this map's.
            seed: of the noise.
            tracked: whether ω has had the increments of θ since the last probe.
        """

    def calibrate(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor | None:
        """The same for a map never probed before."""
        return self.probe(probe, memory, seed, tracked)

    def train(
        self,
        index: int,
        layer: Layer,
        trace: Trace,
        memory: Memory,
        generator: Generator,
        peers: Group = ALONE,
    ) -> FeedbackReport:
        """Probe the layer's map, if that is due."""
        before = memory.probes
        if before == 0 or memory.tick():
            seed = mixed(generator.initial_seed(), before)
            learn = self.probe if before else self.calibrate
            omega = learn(probe_of(layer, trace), memory, seed, self.tracking)
            if omega is not None:
                layer.omega.copy_(omega.view_as(layer.omega))
            if before == 0 and memory.interval:
                memory.wait -= index % memory.interval  # the layers take turns
        return FeedbackReport(
            memory.probes - before,
            mismatch=None if math.isinf(memory.mismatch) else memory.mismatch,
        )


class IteratedSolver(ProbeSolver):
    """A probe solver that makes a fixed number of iterations, more of them at first.

    Attributes:
        iterations: per batch.
        first_iterations: on the first.
    """

    iterations: int
    first_iterations: int

    @abstractmethod
    def iterate(self, probe: Probe, memory: Memory, seed: int, count: int) -> Tensor:
        """The new ω, after ``count`` iterations."""

    def calibrate(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor:
        """``first_iterations`` at once."""
        return self.iterate(probe, memory, seed, self.first_iterations)

    def probe(self, probe: Probe, memory: Memory, seed: int, tracked: bool) -> Tensor:
        """``iterations`` more."""
        return self.iterate(probe, memory, seed, self.iterations)


def probe_of(layer: Layer, trace: Trace) -> Probe:
    """The linear map of a ``targetprop.pair`` layer as a solver sees it, in its weights' format."""
    linear = layer.map.inner if isinstance(layer.map, Reduced) else layer.map
    theta, omega = layer.theta.detach(), layer.omega.detach()
    if not isinstance(linear, (DenseMap, Conv2dMap)):
        return Field(linear.apply, tuple(trace.input.shape[1:]), theta, omega)
    groups = linear.groups if isinstance(linear, Conv2dMap) else 1
    return Patch(*(w.reshape(groups, len(w) // groups, -1) for w in (theta, omega)))


def per_layer(value: PerLayer, index: int, name: str) -> float:
    """Layer ``index``'s setting: a number for all, or a sequence, one per layer with feedback."""
    if isinstance(value, (int, float)):
        return value
    if index >= len(value):
        raise ValueError(
            f"solver setting {name}={list(value)} has {len(value)} entries, but the network has at "
            f"least {index + 1} layers with feedback; give one entry per such "
            "layer, or a single number."
        )
    return value[index]


def noise_like(
    x: Tensor, generator: Generator, count: int | None = None, peers: Group = ALONE
) -> Tensor:
    """Standard normal noise with x's shape and layout, or this process's part of ``count`` samples.

    Each process draws all peers' noise: neither results nor the generator depend on their number.
    """
    count = len(x) * peers.size if count is None else count
    mine, shape = peers.part(count), (count, *x.shape[1:])
    if memory_format(x) == torch.contiguous_format:
        return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)[mine]
    # Drawn as it lies in memory: torch fills other strides several times slower.
    batch, channels, height, width = shape
    noise = torch.randn(
        (batch, height, width, channels), generator=generator, dtype=x.dtype, device=x.device
    )
    return noise.permute(0, 3, 1, 2)[mine]
