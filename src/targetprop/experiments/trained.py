"""A run as a cell of an experiment: trained once, or as far as the time goes; its best rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from targetprop.analysis.tables import angle_summary
from targetprop.experiments.cells import Place, Result, cell
from targetprop.training import loop, runner
from targetprop.training.config import Config
from targetprop.training.logging import read_metrics
from targetprop.tuning.space import settled
from targetprop.tuning.trials import trial

RATE = "optimizer.lr"


def train(place: Place, where: str, run: Config) -> Result:
    """The result of a run with its angles, or ``diverged`` with the reason.

    Args:
        place: of the experiment; at its deadline the run is saved, to go on later.
        where: of the cell, below which the run's folder is.
        run: its configuration.

    Raises:
        Interrupted: the deadline passed, or a signal asked to stop.
    """

    def compute(folder: Path) -> Result:
        try:
            session = runner.take_up(run, folder / "run")
            result = runner.run(session, place.watch, place.deadline)
        except loop.Diverged as error:
            return {"diverged": str(error)}
        return {**result, **angle_summary(read_metrics(folder / "run" / "metrics.jsonl"))}

    return cell(place, where, run.anywhere(), compute, run.device)


def best_rate(place: Place, where: str, plan: Config, grid: Sequence[float]) -> float:
    """The learning rate of the grid with the best validation accuracy; a diverged run has none.

    Args:
        place: of the experiment.
        where: the folder of the cells there.
        plan: the configuration.
        grid: the rates.
    """

    def validated(rate: float) -> float:
        run = settled(plan, {RATE: rate})

        def compute(folder: Path) -> dict[str, Any]:
            try:
                return trial(run, folder / "run", deadline=place.deadline, tell=place.watch)
            except loop.Diverged as error:
                return {"diverged": str(error)}

        found = cell(place, f"{where}/lr-{rate:g}", run.anywhere(), compute, run.device)
        return found.get("validation_accuracy", -1.0)

    return max(grid, key=validated)
