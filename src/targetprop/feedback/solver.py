"""What every feedback solver is: a value with one method that moves ω of one layer by local signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from targetprop.laboratory.layers import Layer, Trace
from targetprop.maps import AutogradMap, memory_format
from targetprop.ranks import ALONE, Group

State = dict[str, Any]
PerLayer = float | Sequence[float]


@dataclass(frozen=True)
class FeedbackReport:
    """What a solver did to one layer on one batch.

    Attributes:
        iterations: how many probes, each an update of ω or a measurement that it needs none.
        loss: the feedback loss before the last update, where the solver has one.
        mismatch: ‖A_ω − A_θ‖_F/‖A_θ‖_F as the last probe found it before correcting, where the solver measures it.

    """

    iterations: int
    loss: Tensor | None = None
    mismatch: Tensor | None = None


class Solver(Protocol):
    """A feedback solver: frozen hyper-parameters; what it must remember of a layer lives in the caller's ``state``."""

    @property
    def tracking(self) -> bool:
        """Whether ω receives the increments of θ as well."""
        ...

    def train(
        self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator, peers: Group = ALONE
    ) -> FeedbackReport:
        """Move ``layer.omega`` in place.

        Args:
            index: the layer's place among those with feedback, from input to output; picks per-layer settings.
            layer: the layer, its forward weights fixed.
            trace: the layer's clean pass of the batch.
            state: this layer's memory between calls, empty at first; numbers and tensors only. If a report has a mismatch,
                the caller puts it into ``state["mismatch"]`` as a number before the next call: a solver then decides by it
                without making the device wait within a step.
            generator: source of the noise, on the layer's device; in the same state on all peers.
            peers: the processes with the other parts of the batch; ω learns from all parts.

        """
        ...


def per_layer(value: PerLayer, index: int, name: str) -> float:
    """The setting of layer ``index``: a number counts for every layer, a sequence holds one per layer with feedback."""
    if isinstance(value, (int, float)):
        return value
    if index >= len(value):
        raise ValueError(
            f"solver setting {name}={list(value)} has {len(value)} entries, but the network has at least {index + 1} "
            f"layers with feedback; give one entry per such layer, or a single number."
        )
    return value[index]


def noise_like(x: Tensor, generator: Generator, count: int | None = None, peers: Group = ALONE) -> Tensor:
    """Standard normal noise shaped like x and laid out like it, or like this process's part of ``count`` samples of it.

    Every process draws the noise of all peers, so that results and the generator's state do not depend on their number.
    """
    count = len(x) * peers.size if count is None else count
    mine, shape = peers.part(count), (count, *x.shape[1:])
    if memory_format(x) == torch.contiguous_format:
        return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)[mine]
    # Drawn as it lies in memory: torch fills other strides several times slower.
    batch, channels, height, width = shape
    noise = torch.randn((batch, height, width, channels), generator=generator, dtype=x.dtype, device=x.device)
    return noise.permute(0, 3, 1, 2)[mine]


@dataclass(frozen=True)
class Taps:
    """How the weights of a linear map are used by one sample.

    Attributes:
        counts: c²D, with D how many outputs each weight feeds: fewer where a kernel tap often meets padding. Shaped to
            broadcast against ω.
        positions: outputs per output channel.
        fan_in: d, mean number of weights that feed an output, k²·C_in without padding.
        energy: c², where the map scales its weights, A_w = c·(unscaled): equalised learning rates, muP.

    """

    counts: Tensor
    positions: int
    fan_in: float
    energy: float = 1.0

    def samples(self, oversampling: float, maximum: int) -> int:
        """How many samples of noise give ``oversampling``·d positions, at most ``maximum``."""
        return min(maximum, math.ceil(oversampling * self.fan_in / self.positions))

    def contraction(self, samples: int) -> float:
        """The factor by which a predictive step on so many samples of white noise shrinks the mismatch: √(d/(D + d))."""
        return (self.fan_in / (samples * self.positions + self.fan_in)) ** 0.5


def taps(layer: Layer, x: Tensor) -> Taps:
    """The taps of the layer's linear map at inputs like x; θ and ω are not read."""
    one = torch.ones_like(x[:1])
    outputs = torch.ones_like(layer.map.apply(one, torch.zeros_like(layer.omega)))
    scale = coefficient(layer, one)
    counts = layer.map.correlate(outputs, one, layer.omega.shape)  # c·D
    fan_in = counts.sum().item() / outputs.numel() / scale
    counts = counts * scale
    for dim in range(counts.dim()):
        first = counts.narrow(dim, 0, 1)
        if torch.equal(first.expand_as(counts), counts):
            counts = first
    return Taps(counts.clone(), outputs.numel() // layer.omega.shape[0], fan_in, scale**2)


def coefficient(layer: Layer, one: Tensor) -> float:
    """c of a map c·(unscaled), measured: what one input alone sends to an output through weights of 1."""
    if not isinstance(layer.map, AutogradMap):
        return 1.0  # a convolution or a dense map of torch's own
    ones = torch.ones_like(layer.omega)
    for place in torch.linspace(0, one.numel() - 1, 16).long().tolist():  # a stride may skip some inputs
        impulse = torch.zeros_like(one).flatten()
        impulse[place] = 1
        answer = layer.map.apply(impulse.view_as(one), ones).flatten()
        largest = answer[answer.abs().argmax()].item()
        if largest != 0:
            return largest
    return 1.0
