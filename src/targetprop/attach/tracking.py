"""Tracking: within the optimizer's step, ω has the gradient of θ, and so gets the same increment.

The finished gradient counts: summed over all uses of a tied weight, clipped, averaged over
processes, unscaled. So it is copied when ``optimizer.step`` begins, not in the backward pass, and
taken away when the step ends: nobody else, neither a norm, a scaler nor a reducer, ever sees a
gradient of ω. ω − θ is untouched by equal increments and shrinks by equal decay (Kolen and Pollack
1994; Akrout et al. 2019); θ itself is not read.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from targetprop.telling import warn

HOOKED: Any = Optimizer.profile_hook_step(lambda self: None)
"""What torch wraps the ``step`` of every optimizer class in, to run its hooks."""

Pairs = Callable[[], Iterable[tuple[nn.Parameter, nn.Parameter]]]
"""The current (θ, ω) of all tracked maps."""


def inner(optimizer: Any) -> Optimizer:
    """The torch optimizer that moves the weights, within the wrappers of accelerate and Lightning.

    One that holds another over its own parameter groups, as sharpness-aware minimisation does,
    moves them by that one's steps.

    Raises:
        TypeError: there is none.
    """
    found = optimizer
    while isinstance(getattr(found, "optimizer", None), Optimizer):
        found = found.optimizer
    if isinstance(found, Optimizer):
        for held in vars(found).values():
            if isinstance(held, Optimizer) and held.param_groups is found.param_groups:
                return held
    if not isinstance(found, Optimizer):
        raise TypeError(
            f"follow needs a torch.optim.Optimizer, got {type(optimizer).__name__}; for another "
            "kind of optimizer call feedback.step() after its step, with a rule or a "
            "solver that does not track."
        )
    return found


def join(optimizer: Optimizer, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> int:
    """Put each ω at the end of its θ's parameter group; returns how many θ the optimizer has.

    An optimizer that has moved θ already gives ω a copy of its state of θ, which holds a history
    of gradients: without it the next increments would not be equal.
    """
    place = {
        id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]
    }
    count = 0
    for theta, omega in pairs:
        wanted, found = place.get(id(theta)), place.get(id(omega))
        count += wanted is not None
        if found is not None and wanted != found:
            drop(optimizer.param_groups[found], {id(omega)})
        if wanted is not None and wanted != found:
            group = optimizer.param_groups[wanted]
            if "param_names" in group:
                at = next(i for i, p in enumerate(group["params"]) if p is theta)
                owner, dot, name = group["param_names"][at].rpartition(".")
                group["param_names"].append(f"{owner}{dot}feedback_{name}")
            group["params"].append(omega)
            place[id(omega)] = wanted
        if wanted is not None and theta in optimizer.state and omega not in optimizer.state:
            optimizer.state[omega] = copy.deepcopy(optimizer.state[theta])
    return count


def admit(
    optimizer: Optimizer,
    pairs: Sequence[tuple[nn.Parameter, nn.Parameter]],
    own: Iterable[nn.Parameter],
) -> int:
    """Let the optimizer of a model with parameters ``own`` move ``pairs``; returns as :func:`join`.

    Raises:
        ValueError: it would move ω twice, or trains nothing of ``own``.
    """
    if pairs and isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "L-BFGS steps along one direction of all its parameters, in which ω would count "
            "twice; take a solver that does not track, such as PredictiveSolver(tracking=False)."
        )
    count = join(optimizer, pairs)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in known for p in own):
        raise ValueError(
            "the optimizer trains no parameter of the attached model; build it from "
            "model.parameters() of the model that was attached (after fully_shard, where that "
            "replaces them)."
        )
    return count


def drop(group: dict[str, Any], gone: set[int]) -> None:
    """Take the parameters with ids ``gone`` out of a group, names and all."""
    kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
    for key in ("params", "param_names"):
        if key in group:
            group[key][:] = [group[key][i] for i in kept]


def leave(optimizer: Optimizer, omegas: Iterable[nn.Parameter]) -> None:
    """Take every ω out of the optimizer, state and all."""
    gone = {id(omega): omega for omega in omegas}
    for group in optimizer.param_groups:
        drop(group, set(gone))
    for omega in gone.values():
        optimizer.state.pop(omega, None)


def with_gradients(act: Callable[[], None], args: Any, kwargs: Any) -> Any:
    """Call ``act`` when a step's gradients are finished: now, or after each call of their closure.

    Args:
        act: what to do.
        args: those of ``optimizer.step``, the optimizer first.
        kwargs: likewise.

    Returns:
        what the hook of a step returns: None, or the arguments to use instead.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        act()
        return None

    def then_act() -> Any:
        found = closure()
        act()
        return found

    if "closure" in kwargs:
        return args, kwargs | {"closure": then_act}
    return (*args[:1], then_act, *args[2:]), kwargs


class Step:
    """Hooks of one optimizer: copy gradients as a step begins, clear them and probe as it ends.

    It does not keep the optimizer alive. An optimizer whose ``step`` calls that of its own base
    class runs the hooks of both, and only the outer step counts.
    """

    def __init__(
        self, optimizer: Optimizer, pairs: Pairs, after: Callable[[Optimizer], None], finite: bool
    ):
        """Follow ``optimizer``; ``finite``: a finite nudge, which no scaler may blow up."""
        self._optimizer = weakref.ref(optimizer)
        self.pairs, self.after, self.finite = pairs, after, finite
        self.count, self.depth = 0, 0
        self.handles = [
            optimizer.register_step_pre_hook(self.begin),
            optimizer.register_step_post_hook(self.end),
        ]

    def begin(
        self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Copy the gradients now, or after each call of their closure (Lightning, L-BFGS)."""
        if self.running and calls_of_step(optimizer) > 1:
            self.depth += 1
            return None
        self.depth = 1  # whatever an earlier step left that failed
        if self.finite and called_by_scaler():
            raise RuntimeError(
                "attach(beta=...) sends finite differences, which a gradient scaler would enlarge: "
                "train in float32 or bfloat16 without a scaler, or leave beta out."
            )
        return with_gradients(self.copy, args, kwargs)

    @property
    def optimizer(self) -> Optimizer | None:
        """The followed optimizer, while there is one."""
        return self._optimizer()

    @property
    def running(self) -> bool:
        """Whether the optimizer is within its step."""
        return self.depth > 0

    def moved(self) -> set[int]:
        """The ids of what the optimizer moves."""
        groups = self.optimizer.param_groups if self.optimizer else ()
        return {id(p) for group in groups for p in group["params"]}

    def copy(self) -> None:
        """∇ω := ∇θ for each tracked map of the optimizer; a θ that joined it since brings its ω."""
        mine, pairs = self.moved(), list(self.pairs())
        optimizer = self.optimizer
        if optimizer and any(id(t) in mine and id(omega) not in mine for t, omega in pairs):
            join(optimizer, pairs)
            mine = self.moved()
        for theta, omega in pairs:
            if id(omega) in mine and id(theta) in mine:
                omega.grad = None if theta.grad is None else theta.grad.detach().clone()

    def end(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        """Clear them, probe what is due; our hook stays last: others see gradients of θ alone."""
        self.depth -= 1
        if self.running:
            return
        for _, omega in self.pairs():
            omega.grad = None
        self.handles[0].remove()
        self.handles[0] = optimizer.register_step_pre_hook(self.begin)
        self.after(optimizer)

    def remove(self) -> None:
        """Follow no more."""
        for handle in self.handles:
            handle.remove()


def calls_of_step(optimizer: Optimizer | None = None) -> int:
    """How many calls of a ``step`` of ``optimizer``, or of any, are under way."""
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        if frame.f_code is HOOKED.__code__:
            own = frame.f_locals["args"][:1]
            count += optimizer is None or (len(own) == 1 and own[0] is optimizer)
        frame = frame.f_back
    return count


def called_by_scaler() -> bool:
    """Whether an enabled gradient scaler is what called the optimizer."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.amp.GradScaler):
            return caller.is_enabled()
        frame = frame.f_back
    return False


def warn_without_decay(optimizer: Optimizer) -> None:
    """Kolen–Pollack needs weight decay."""
    if not any(group.get("weight_decay") for group in optimizer.param_groups):
        warn(
            "kolen_pollack brings ω to θ by weight decay alone, and this optimizer has none; "
            "give it a weight_decay > 0."
        )
