"""A warning for what trains by itself: the weights move, and no ω learns."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from targetprop.attach.link import Link
from targetprop.attach.sites import Site
from targetprop.attach.tracking import calls_of_step
from targetprop.telling import warn

UNTAUGHT = (
    "call follow(optimizer) of its feedback or algorithm for the optimizer whose step runs, or "
    "feedback.step() after every step."
)
COPY = (
    "it is a copy of the model that was attached; give it a handle of its own by "
    "targetprop.attach(copy), and follow its optimizer."
)


class Reminder:
    """Says once that weights move while ω does not: no followed optimizer, nor ``step``, did it.

    It looks before each eager pass, where one move is enough if nothing was ever followed or
    stepped and the model trains; else it takes two in a row, since weights may be clipped, averaged
    or perturbed between steps. And it looks after each step of an optimizer that has the weight,
    whatever calls the model (a closure, compiled code): there two in a row are enough, unless
    backpropagation was asked for meanwhile.

    Attributes:
        watching: those that are told of every optimizer's steps.
    """

    watching: tuple[weakref.ref[Reminder], ...] = ()

    def __init__(self, where: nn.Module, module: nn.Module, name: str, link: Link):
        """Watch the weight ``name`` of ``module`` before each pass of ``where`` with gradients."""
        self.module, self.name, self.link = module, name, link
        self.seen: tuple[int, int] | None = None
        self.moves, self.taught, self.loaded = 0, link.taught, link.loads.count
        self.steps, self.heeded = 0, (link.taught, link.exacts)
        self.handle = where.register_forward_pre_hook(self.look)
        watch(self)

    def look(self, model: nn.Module, args: tuple) -> None:
        """Compare how often the weight has been written."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self.link.exact:
            return
        watch(self)  # a copy is none before its first pass
        feedback, weight = self.link.handle, self.module._parameters.get(self.name)
        if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
            return  # of functional_call, of a target network
        if self.loaded != self.link.loads.count:  # a checkpoint, no step
            self.loaded, self.seen = self.link.loads.count, None
        before, self.seen = self.seen, (id(weight), weight._version)
        moved = before is not None and before[0] == id(weight) and before[1] < weight._version
        if self.taught != self.link.taught:
            self.taught, self.moves = self.link.taught, 0
        elif moved and not calls_of_step():  # a step may run the model many times: L-BFGS
            self.moves += 1
        known = feedback is not None and (self.taught or feedback.followed)
        if self.moves >= (2 if known or not model.training else 1):
            self.tell()

    def stepped(self, optimizer: Optimizer) -> None:
        """Count the steps of an optimizer that moves the weight."""
        weight, now = self.module._parameters.get(self.name), (self.link.taught, self.link.exacts)
        if weight is None or weight.grad is None or not weight.requires_grad:
            return
        of_it = any(p is weight for group in optimizer.param_groups for p in group["params"])
        if not of_it or calls_of_step(optimizer) > 1:
            return
        self.steps = self.steps + 1 if self.heeded == now else 0
        self.heeded = now
        if self.steps > 1:
            self.tell()

    def tell(self) -> None:
        """Warn, and be done."""
        self.remove()
        warn(
            "the weights of an attached model move but its feedback learns nothing: "
            + (UNTAUGHT if self.link.handle is not None else COPY)
        )

    def remove(self) -> None:
        """Unhook."""
        self.handle.remove()
        Reminder.watching = tuple(ref for ref in Reminder.watching if ref() is not self)


def watch(reminder: Reminder) -> None:
    """Tell ``reminder`` of every optimizer's steps from now on, as long as it lives."""
    if all(ref() is not reminder for ref in Reminder.watching):
        living = (ref for ref in Reminder.watching if ref() is not None)
        Reminder.watching = (*living, weakref.ref(reminder))
        hook_steps()


@cache
def hook_steps() -> None:
    """Have torch tell of every optimizer's steps."""
    register_optimizer_step_post_hook(after_step)


def after_step(optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
    """Whose step it was is for each reminder to say."""
    if not torch.compiler.is_compiling():
        for ref in Reminder.watching:
            reminder = ref()
            if reminder is not None:
                reminder.stepped(optimizer)


def remind(sites: Sequence[Site], link: Link, where: nn.Module | None) -> Reminder | None:
    """Watch a weight of ``sites`` that learns, if any, in passes of ``where`` or its own."""
    for site in sites:
        if site.theta is not None and not site.frozen:
            return Reminder(where or site.module, site.module, site.layout.weight, link)
    return None
