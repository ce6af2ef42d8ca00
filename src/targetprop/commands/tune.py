"""Search for the best settings by validation accuracy; run it again, or twice, to go on."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from targetprop.commands.common import (
    answer,
    bar_of,
    console,
    data_dir,
    overrides,
    say,
    until,
    writable,
)
from targetprop.training import config
from targetprop.training.config import ConfigError, place, require
from targetprop.training.loop import Diverged
from targetprop.tuning import space as spaces
from targetprop.tuning import study_file, trials
from targetprop.tuning.default_space import default_space
from targetprop.tuning.plan import Plan

EXAMPLE = "targetprop tune digits-ldrl --trials 20 --storage sqlite:///study.db"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("preset", help="a preset or a YAML file; its seed is the sampler's too")
    p.add_argument("--trials", type=int, default=20, help="how many, earlier ones among them")
    p.add_argument(
        "--storage",
        default="sqlite:///study.db",
        metavar="sqlite:///FILE",
        help="the study, which several processes may work on",
    )
    p.add_argument(
        "--space",
        metavar="YAML",
        help="keys with {low: A, high: B, log: true} or {choices: [A, B]}; default: rates, "
        "weight decay and beta around the preset's",
    )
    p.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe")
    p.add_argument("--no-prune", action="store_true", help="train every trial to its end")
    p.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop and save after so many minutes"
    )
    p.add_argument("--out", help="the folder of trials and results (default beside the study)")
    p.add_argument("--data-dir", help="where data sets lie")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Try settings, or go on with that; then write the best configuration and the table."""
    deadline = until(args.minutes)
    if args.trials < 1:
        raise ConfigError(f"--trials {args.trials} is out of range; expected at least 1.")
    base = config.load(args.preset, [*overrides(words), *data_dir(args)])
    trials.demand_validation(base)
    name = args.space or "the default space"
    space = spaces.read(place(args.space)) if args.space else default_space(base)
    spaces.check(space, base, name)
    require("tune", "tune", "optuna")
    from targetprop.tuning import report as tune_report
    from targetprop.tuning import study as tune

    path = study_file.database(args.storage)
    folder = Path(path).with_suffix("") if args.out is None else place(args.out)
    if folder == path:
        raise ConfigError(f"{folder} is the study itself; give the folder of its trials by --out.")
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} holds a run; give another --out.")
    plan = Plan(args.preset, base, space, args.sampler, not args.no_prune, folder)
    with bar_of("trial") as tell:
        study = tune.Study(plan, args.storage, say, tell)
        writable(str(folder))
        try:
            study.work(args.trials, deadline)
        finally:
            best, record = tune_report.write(study)
    # commit and date, which all share as a rule, are left to trials.md
    table = Table(*(heading.rpartition(".")[2] for heading in tune_report.headings(study)[:-2]))
    for trial in tune_report.best_first(study):
        table.add_row(*tune_report.row(study, trial)[:-2])
    console.print(table)
    answer(args, record)
    running = sum(1 for trial in study.trials() if trial.state.name == "RUNNING")
    if running:
        say(f"{running} run in other processes, which write the results anew when they are done.")
    if best is None:
        raise Diverged(f"no trial came to its end; {folder / 'trials.md'} says why.")
    say(
        f"trial {best.user_attrs['trial']} is the best: validation accuracy "
        f"{100 * (best.value or 0):.2f} %; targetprop train {folder / 'best.yaml'}"
    )
