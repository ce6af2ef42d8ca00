"""What a study came to: the best configuration, and a table of its trials."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from targetprop.analysis.tables import markdown, number
from targetprop.training import runner
from targetprop.training.checkpoint import write_text
from targetprop.training.device import pick_device
from targetprop.training.logging import environment, provenance
from targetprop.tuning import space as spaces
from targetprop.tuning.study import Study

STATES = {
    TrialState.COMPLETE: "ended",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "given up",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def headings(study: Study) -> tuple[str, ...]:
    """Of the table."""
    keys = study.plan.space
    return ("trial", "state", "validation accuracy", *keys, "epochs", "minutes", "commit", "date")


def row(study: Study, trial: FrozenTrial) -> tuple[str, ...]:
    """A trial as text, under ``headings``."""
    point, record = study.point(trial), trial.user_attrs.get("environment", {})
    ended = trial.state == TrialState.COMPLETE and trial.value is not None
    why = trial.user_attrs.get("why", "").partition(":")[0]
    state = why if why in ("diverged", "refused") else STATES[trial.state]
    seconds = trial.duration.total_seconds() if trial.duration else None
    return (
        str(trial.user_attrs["trial"]),
        state,
        f"{100 * (trial.value or 0):.2f} %" if ended else "–",
        *(spaced(point.get(key)) for key in study.plan.space),
        str(len(trial.intermediate_values)),
        number(seconds and seconds / 60, 1),
        str(record.get("commit", "–")),
        str(record.get("date", "–")),
    )


def spaced(value: Any) -> str:
    """A value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def repeat(study: Study, trial: FrozenTrial) -> str:
    """The command that trains the configuration of a trial by itself, and tests it."""
    words = ["targetprop", "train", str(study.plan.folder / "base.yaml")]
    for key, value in study.point(trial).items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def best_first(study: Study) -> Sequence[FrozenTrial]:
    """The trials: those that ended by their accuracy, then the others."""
    ended = [t for t in study.trials() if t.state == TrialState.COMPLETE]
    rest = [t for t in study.trials() if t.state != TrialState.COMPLETE]
    return [*sorted(ended, key=lambda t: -(t.value or 0)), *rest]


def write(study: Study) -> tuple[FrozenTrial | None, dict[str, Any]]:
    """Write ``trials.json``, ``trials.md``, ``space.yaml``, ``base.yaml`` and ``best.yaml``.

    Returns:
        the best trial, without which there is no ``best.yaml``, and what ``trials.json`` holds.
    """
    plan, folder = study.plan, study.plan.folder
    record = environment(pick_device(plan.base.device), plan.base.seed)
    rows = best_first(study)
    plain = [
        {
            "trial": t.user_attrs["trial"],
            "state": STATES[t.state],
            "why": t.user_attrs.get("why", ""),
            "validation_accuracy": t.value if t.state == TrialState.COMPLETE else None,
            "values": study.point(t),
            "validation_by_epoch": list(t.intermediate_values.values()),
            "result": t.user_attrs.get("result"),
            "environment": t.user_attrs.get("environment"),
            "command": repeat(study, t),
        }
        for t in rows
    ]
    found = {"environment": record, "study": plan.record(), "trials": plain}
    write_text(folder / "trials.json", json.dumps(found, indent=2) + "\n")
    about = (
        f"{provenance(record)}\n{plan.preset}, seed {plan.base.seed}, sampler {plan.sampler}; "
        f"accuracies on the {100 * plan.base.data.validation:g} % of the training images that are "
        "held out; the test images were not looked at. Each trial's command is in trials.json.\n\n"
    )
    table = markdown(headings(study), [row(study, t) for t in rows])
    write_text(folder / "trials.md", about + table)
    space = {key: one.record() for key, one in plan.space.items()}
    write_text(folder / "space.yaml", yaml.safe_dump(space, sort_keys=False))
    runner.write_config(plan.base, folder, "base.yaml")
    best = study.best()
    if best is not None:
        runner.write_config(spaces.settled(plan.base, study.point(best)), folder, "best.yaml")
    return best, found
