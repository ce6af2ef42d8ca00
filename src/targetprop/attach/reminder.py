"""A warning for what trains by itself: the weights move, and no ω learns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from targetprop.attach.link import Link
from targetprop.attach.sites import Site

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

    def __init__(self, where: nn.Module, module: nn.Module, name: str, link: Link, feedback: Any):
        """Watch the weight ``name`` of ``module`` before each pass of ``where`` with gradients."""
        self.module, self.name, self.link, self.feedback = module, name, link, feedback
        self.seen: int | None = None
        self.moves, self.steps, self.loaded = 0, 0, link.loaded
        self.handle = where.register_forward_pre_hook(self.look)

    def look(self, model: nn.Module, args: tuple) -> None:
        """Compare how often the weight has been written."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self.link.exact:
            return
        feedback = self.feedback or (self.link.handle and self.link.handle())
        weight = self.module._parameters.get(self.name)
        if weight is None:
            return
        if self.loaded != self.link.loaded:  # a checkpoint, no step
            self.loaded, self.seen = self.link.loaded, None
        moved = self.seen is not None and weight._version > self.seen
        if feedback is not None and (feedback.steps != self.steps or feedback.stepping):
            self.steps, self.moves = feedback.steps, 0
        elif moved:
            self.moves += 1
        self.seen = weight._version
        taught = feedback is not None and (self.steps or feedback.followed)
        if self.moves >= (2 if taught or not model.training else 1):
            self.remove()
            warnings.warn(
                "the weights of an attached model move but its feedback learns nothing: "
                + (UNTAUGHT if feedback is not None else COPY),
                UserWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Of a copied or pickled model, whose handle is another."""
        return self.__dict__ | {"feedback": None}

    def remove(self) -> None:
        """Unhook."""
        self.feedback = None
        self.handle.remove()


def remind(
    sites: Sequence[Site], link: Link, where: nn.Module | None, feedback: Any
) -> Reminder | None:
    """Watch a weight of ``sites`` that learns, if any, in passes of ``where`` or its own."""
    for site in sites:
        if site.theta is not None and not site.frozen:
            return Reminder(where or site.module, site.module, site.layout.weight, link, feedback)
    return None
