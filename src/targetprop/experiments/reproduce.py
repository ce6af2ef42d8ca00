"""Every figure and table of the paper by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from targetprop.experiments import (
    cost,
    evidence,
    figure_4_2,
    figure_4_3,
    figure_4_3_curves,
    paper_tables,
    theory,
)
from targetprop.experiments.cells import Place


def whole_figure_4_3(place: Place) -> None:
    """The paper's bars, then what it lacks: the same angles as curves."""
    figure_4_3.reproduce(place)
    figure_4_3_curves.over_iterations(place)
    figure_4_3_curves.over_training(place)


EXPERIMENTS: dict[str, Callable[[Place], None]] = {
    "figure-4.2": figure_4_2.reproduce,
    "figure-4.3": whole_figure_4_3,
    "table-1": partial(paper_tables.reproduce, paper_tables.TABLE_1, "table-1"),
    "table-2": partial(paper_tables.reproduce, paper_tables.TABLE_2, "table-2"),
    "cost": cost.reproduce,
    "theory": theory.reproduce,
    "critique": partial(paper_tables.reproduce, paper_tables.CRITIQUE, "critique"),
    "evidence": evidence.reproduce,
}
SCALES = ("smoke", "cpu", "paper")
