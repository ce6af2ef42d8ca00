"""What was loaded into a model since its maps were last measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
    """

    count: int = 0
    unsure: bool = False
    stale: bool = False
    asked: bool = False

    def note(self, module: nn.Module, brought: set[str], left_out: bool) -> None:
        """``module`` was loaded: the ω in ``brought`` came along, or some were ``left_out``."""
        self.count += 1
        self.unsure = True
        self.stale |= left_out
        module.__dict__[LEFT_OUT] = left_out
        module.__dict__[BROUGHT] = brought | module.__dict__.get(BROUGHT, set())

    def weigh(self, modules: Iterable[nn.Module]) -> None:
        """Of all modules: a later checkpoint may have brought what an earlier one left out."""
        self.stale = self.asked or any(module.__dict__.get(LEFT_OUT) for module in modules)

    def state_dict(self) -> dict[str, bool]:
        """What a resumed run must still measure or learn."""
        return {"stale": self.stale, "unsure": self.unsure}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; a state without it has nothing left.

        Raises:
            ValueError: it is neither true nor false.
        """
        for key in ("stale", "unsure"):
            if not isinstance(state.get(key, False), bool):
                raise ValueError(f"this feedback state has {key}={state[key]!r:.40}, no truth.")
        self.unsure, self.asked = bool(state.get("unsure")), bool(state.get("stale"))
        self.stale |= self.asked

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Every map of ``modules`` has been measured, or will be in the step under way."""
        for module in modules if self.stale else ():
            module.__dict__.pop(LEFT_OUT, None)
        self.stale = self.asked = self.unsure = False
