"""What a rule, a solver or an algorithm assumes and costs, by its own class; the table of all."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of the table of algorithms; by default of one that carries errors by ω alone.

    Attributes:
        call: how it is made.
        feedback: what the feedback weights are or how they learn.
        carries: what the feedback path carries to a layer.
        local: every weight learns from signals at its own layer only.
        transport: reads θ to set or use a feedback weight (weight transport).
        symmetric: uses one feedback weight in both directions, or shares increments of θ with ω.
        phases: of a step, beside the forward pass.
        passes: cost of a step over that of backprop, counted in products with a layer's weights.
    """

    call: str
    feedback: str
    carries: str = "error"
    local: str = "yes"
    transport: str = "no"
    symmetric: str = "no"
    phases: str = "errors"
    passes: str = "1"

    def cells(self) -> tuple[str, ...]:
        """In the order of the headings."""
        first = f"`{self.call}`", self.carries, self.feedback, self.local, self.transport
        return *first, self.symmetric, self.phases, self.passes


corrected = partial(Row, carries="difference-corrected target")
"""A row of an algorithm of difference target propagation."""


HEADINGS = (
    "algorithm",
    "carries",
    "feedback weights",
    "local",
    "weight transport",
    "symmetric synapses",
    "phases",
    "cost",
)


def found(package: Any, mark: str) -> dict[str, Any]:
    """A package's classes that set ``mark`` themselves, by file name: a new file is a new entry."""
    classes = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and value.__module__ == module.__name__
                and mark in vars(value)
            ):
                classes[entry.name] = value
    return classes


def markdown(classes: Iterable[Any]) -> str:
    """The rows of ``classes`` as a table in Markdown."""
    rows = [row.cells() for kind in classes for row in kind.rows]
    return "".join(
        "| " + " | ".join(row) + " |\n" for row in (HEADINGS, ("---",) * len(HEADINGS), *rows)
    )
