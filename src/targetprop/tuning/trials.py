"""Runs that are judged by what is held out of the training images, and never see the test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from targetprop.training import loop, runner
from targetprop.training.config import Config, ConfigError
from targetprop.training.logging import Metrics, is_before, read_metrics
from targetprop.training.session import Session

Report = Callable[[Session, float, int], None]
"""Is told a session, the validation accuracy of an epoch and its number."""


def demand_validation(run: Config) -> None:
    """Refuse a configuration that holds nothing out.

    Raises:
        ConfigError: it does not.
    """
    if not run.data.validation:
        raise ConfigError(
            "data.validation=0 leaves no images to judge a trial by; give a fraction such as 0.1."
        )


def trial(
    run: Config,
    folder: Path,
    report: Report = lambda session, accuracy, epoch: None,
    deadline: float = float("inf"),
    tell: loop.Tell = lambda session, loss: None,
) -> dict[str, Any]:
    """Train a configuration in ``folder``, or go on with that.

    Args:
        run: the configuration.
        folder: of the run.
        report: told every epoch's validation accuracy, those before a resumption first; what it
            raises ends the trial.
        deadline: time.monotonic() at which to stop as if asked to.
        tell: called after every step, to show progress.

    Returns:
        steps, seconds per step and the best validation accuracy.

    Raises:
        ConfigError: nothing is held out, or the folder holds a run with other settings.
        Diverged: loss or weights are not finite.
        Interrupted: SIGINT or SIGTERM came, or the deadline passed; the state is saved.
    """
    demand_validation(run)
    session = runner.take_up(run, folder)
    if session.validation is None:
        raise ConfigError(
            f"data.validation={run.data.validation} holds out none of "
            f"{len(session.train.data)} images; give a larger fraction."
        )
    nothing = session.test.data[slice(0, 0)]
    session.test = dataclasses.replace(session.test, data=nothing)  # nobody can look at it
    for row in read_metrics(folder / "metrics.jsonl"):
        ended = row["kind"] == "validation" and row.get("epoch", 0) < session.progress.epoch
        if ended and is_before(row, session.progress.step):
            report(session, row["accuracy"], row["epoch"])
    return loop.run(
        session,
        tell,
        deadline,
        judge=lambda session, accuracy: report(session, accuracy, session.progress.epoch - 1),
        end=held_out_result,
    )


def held_out_result(session: Session, metrics: Metrics) -> dict[str, Any]:
    """What a trial comes to, by what is held out alone."""
    progress, held_out = session.progress, session.validation
    assert held_out is not None
    return {
        "steps": progress.step,
        "seconds_per_step": progress.seconds / max(1, progress.step),
        "validation_accuracy": loop.best_validated(session, metrics, held_out),
    }
