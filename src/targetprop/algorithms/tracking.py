"""Tracking for explicit passes: within any optimizer's step, ω has the gradient of its θ.

The finished gradient counts: accumulated, clipped, unscaled. It is copied when a step begins and
taken away when it ends, so that no norm and no scaler ever sees a gradient of ω. Hooks of all torch
optimizers do it, since users of ``algo.backward`` tell the algorithm nothing of theirs; a network
counts as long as an algorithm that tracks lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from targetprop.attach.tracking import with_gradients
from targetprop.laboratory.pairing import Network
from targetprop.telling import warn

_living: weakref.WeakSet[Tracking] = weakref.WeakSet()
_hooked: list[Any] = []


class Tracking:
    """One network whose ω follow θ (Kolen and Pollack 1994; Akrout et al. 2019).

    Keep it alive as long as they should.
    """

    def __init__(self, net: Network):
        """Follow the layers of ``net`` that have feedback."""
        self.layers = [layer for layer in net.layers if layer.has_feedback]
        self.warned = False
        _living.add(self)
        if not _hooked:
            _hooked.append(register_optimizer_step_pre_hook(begin))
            _hooked.append(register_optimizer_step_post_hook(end))

    def pairs(self, optimizer: Optimizer) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(θ, ω) that the optimizer moves; says once that it moves θ alone, if it does."""
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for layer in self.layers:
            if id(layer.omega) in known:
                yield layer.theta, layer.omega
            elif id(layer.theta) in known and layer.theta.requires_grad and not self.warned:
                self.warned = True
                warn(
                    "tracking is on but the optimizer moves the forward weights only, so the "
                    "feedback weights fall behind between probes; give it net.parameters(), or "
                    "use a solver with tracking=False."
                )


def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    """Copy gradients when they are finished."""
    return with_gradients(partial(copy, optimizer), args, kwargs) if _living else None


def copy(optimizer: Optimizer) -> None:
    """∇ω := ∇θ."""
    for tracking in list(_living):
        for theta, omega in tracking.pairs(optimizer):
            omega.grad = None if theta.grad is None else theta.grad.detach().clone()


def end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Take them away."""
    for tracking in list(_living):
        for _, omega in tracking.pairs(optimizer):
            omega.grad = None
