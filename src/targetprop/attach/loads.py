"""What was loaded into a model since its maps were last measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

LEFT_OUT = "_feedback_left_out"
"""Marks a module whose weights came without its ω."""
BROUGHT = "_feedback_brought"
"""Names the ω of a module that a checkpoint has brought."""


@dataclass
class Loads:
    """The loads of all modules of one model.

    Attributes:
        count: how often a module was loaded.
        unsure: weights were loaded, or may have moved, so every map must be measured.
        stale: weights came without their ω, so every map must learn anew.
        asked: a state of the feedback says so, whatever the modules were given.
        assigned: other tensors took the place of weights.

    """

    count: int = 0
    unsure: bool = False
    stale: bool = False
    asked: bool = False
    assigned: bool = False

    def note(self, module: nn.Module, brought: set[str], left_out: bool, assigned: bool) -> None:
        """``module`` was loaded: the ω in ``brought`` came along, or some were ``left_out``."""
        self.count += 1
        self.unsure = True
        self.assigned |= assigned
        self.stale |= left_out
        module.__dict__[LEFT_OUT] = left_out
        module.__dict__[BROUGHT] = brought | module.__dict__.get(BROUGHT, set())

    def weigh(self, modules: Iterable[nn.Module]) -> None:
        """Of all modules: a later checkpoint may have brought what an earlier one left out."""
        self.stale = self.asked or any(module.__dict__.get(LEFT_OUT) for module in modules)

    def resume(self, stale: bool, unsure: bool) -> None:
        """A state of the feedback was loaded, which says how its maps were when it was saved."""
        self.unsure, self.asked = unsure, stale
        self.stale |= stale

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Every map of ``modules`` has been measured, or will be in the step under way."""
        for module in modules if self.stale else ():
            module.__dict__.pop(LEFT_OUT, None)
        self.stale = self.asked = self.unsure = self.assigned = False
