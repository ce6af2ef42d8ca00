"""Whose turn it is to be probed, where several optimizers move one attached model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from targetprop.attach.sites import Site
from targetprop.attach.tracking import Step


class Rounds:
    """The followed optimizers; each that goes ahead of all begins a new round.

    Attributes:
        steps: one for each optimizer.
        count: of rounds so far.
    """

    def __init__(self):
        """Of no optimizer yet."""
        self.steps: list[Step] = []
        self.count = 0

    def add(self, step: Step) -> None:
        """Follow one more from this round on; those whose optimizer is gone are forgotten."""
        self.steps = [known for known in self.steps if known.optimizer is not None]
        step.count = self.count
        self.steps.append(step)

    def has(self, optimizer: Any) -> bool:
        """Whether it is followed."""
        return any(step.optimizer is optimizer for step in self.steps)

    def turn(self, optimizer: Any, sites: Iterable[Site]) -> tuple[list[Site], bool]:
        """(the maps to look at after a step of ``optimizer``, whether a round begins).

        They are those that it moves something of and, once a round, those that none moves. ω of
        other optimizers' maps stay: a graph that waits for its backward pass may hold them.
        """
        stepped = next(step for step in self.steps if step.optimizer is optimizer)
        stepped.count += 1
        begins = stepped.count > self.count
        self.count = max(self.count, stepped.count)
        if sum(step.optimizer is not None for step in self.steps) == 1:
            return list(sites), begins
        mine, anyone = stepped.moved(), {p for step in self.steps for p in step.moved()}
        found = []
        for site in sites:
            own = {id(p) for p in site.module.parameters()}
            if own & mine or (begins and not own & anyone):
                found.append(site)
        return found, begins
