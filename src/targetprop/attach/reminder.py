"""A warning for what trains by itself: the weights move, and no ω learns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from targetprop.attach.link import Link
from targetprop.attach.sites import Site
from targetprop.attach.tracking import calls_of_step

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

    One move is enough where nothing was ever followed or stepped and the model trains; else it
    takes two in a row, since weights may be clipped, averaged or perturbed between steps.
    """

    def __init__(self, where: nn.Module, module: nn.Module, name: str, link: Link):
        """Watch the weight ``name`` of ``module`` before each pass of ``where`` with gradients."""
        self.module, self.name, self.link = module, name, link
        self.seen: int | None = None
        self.moves, self.taught, self.loaded = 0, link.taught, link.loaded
        self.handle = where.register_forward_pre_hook(self.look)

    def look(self, model: nn.Module, args: tuple) -> None:
        """Compare how often the weight has been written."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self.link.exact:
            return
        feedback, weight = self.link.handle, self.module._parameters.get(self.name)
        if weight is None or not weight.requires_grad:  # of a target network, say
            return
        if self.loaded != self.link.loaded:  # a checkpoint, no step
            self.loaded, self.seen = self.link.loaded, None
        moved = self.seen is not None and weight._version > self.seen
        if self.taught != self.link.taught:
            self.taught, self.moves = self.link.taught, 0
        elif moved and not calls_of_step():  # a step may run the model: L-BFGS
            self.moves += 1
        self.seen = weight._version
        known = feedback is not None and (self.taught or feedback.followed)
        if self.moves >= (2 if known or not model.training else 1):
            self.remove()
            warnings.warn(
                "the weights of an attached model move but its feedback learns nothing: "
                + (UNTAUGHT if feedback is not None else COPY),
                UserWarning,
                stacklevel=2,
            )

    def remove(self) -> None:
        """Unhook."""
        self.handle.remove()


def remind(sites: Sequence[Site], link: Link, where: nn.Module | None) -> Reminder | None:
    """Watch a weight of ``sites`` that learns, if any, in passes of ``where`` or its own."""
    for site in sites:
        if site.theta is not None and not site.frozen:
            return Reminder(where or site.module, site.module, site.layout.weight, link)
    return None
