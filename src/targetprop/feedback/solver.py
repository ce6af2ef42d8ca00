"""What every feedback solver is: a value with one method that moves ω of one layer by local signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from targetprop.layers import Layer, Trace

State = dict[str, Any]
PerLayer = float | Sequence[float]


@dataclass(frozen=True)
class FeedbackReport:
    """What a solver did to one layer on one batch.

    Attributes:
        iterations: how many updates of ω.
        loss: the feedback loss before the last update, where the solver has one.
        mismatch: ‖J_G − J_Fᵀ‖_F/‖J_F‖_F as the last probe saw it (matched feedback), where the solver measures it.

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

    def train(self, index: int, layer: Layer, trace: Trace, state: State, generator: Generator) -> FeedbackReport:
        """Move ``layer.omega`` in place.

        Args:
            index: the layer's place among those with feedback, from input to output; picks per-layer settings.
            layer: the layer, its forward weights fixed.
            trace: the layer's clean pass of the batch.
            state: this layer's memory between calls, empty at first; numbers and tensors only.
            generator: source of the noise, on the layer's device.

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


def noise_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise shaped like x."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def tap_weights(layer: Layer, trace: Trace) -> Tensor:
    """D = Σ over batch and positions of S′ᵀS′1, per output channel and kernel tap; shaped like ω.

    The diagonal of what multiplies ω in E corr(S′ᵀ S′ A_ω ε, ε): (m ⊙ ψ′)² summed, weighted by how many windows a unit
    wins. A tap that only ever sees padding has D = 0.
    """
    stage, saved = layer.stage, trace.saved
    ones = torch.ones_like(trace.output)
    if stage.steps:
        ones = stage.vjp(saved, stage.jvp(saved, torch.ones_like(stage.vjp(saved, ones))))
    total = ones.sum(0, keepdim=True)
    return layer.map.correlate(total, torch.ones_like(trace.input[:1]), layer.omega.shape)


def fan_in(layer: Layer) -> int:
    """d = k²·C_in, the number of weights of one output unit."""
    return math.prod(layer.omega.shape[1:])
