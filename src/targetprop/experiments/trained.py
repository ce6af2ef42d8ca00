"""A run as a cell of an experiment: trained once, or as far as the time goes."""

from __future__ import annotations

from pathlib import Path

from targetprop.analysis.tables import angle_summary
from targetprop.experiments.cells import Place, Result, cell, run_settings
from targetprop.training import loop, runner
from targetprop.training.config import Config
from targetprop.training.logging import read_metrics


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

    return cell(place, where, run_settings(run), compute, run.device)
