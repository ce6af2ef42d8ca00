"""Go on with a run from its last checkpoint."""

from __future__ import annotations

import argparse

from targetprop.commands.common import (
    answer,
    data_dir,
    follow,
    held,
    logged,
    overrides,
    ranks_of,
    run_config,
    say,
    spread_out,
    warn,
)
from targetprop.training import checkpoint, loggers, runner
from targetprop.training.config import place
from targetprop.training.logging import read_result

EXAMPLE = "targetprop resume runs/mine --epochs 40"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("run", help="the run's folder")
    p.add_argument(
        "--auto",
        action="store_true",
        help="from the newest valid checkpoint in the folder or the runs below it",
    )
    p.add_argument("--data-dir", help="where data sets lie")
    logged(p)
    spread_out(p)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Go on with a run."""
    loggers.demand(args.logger)
    path, refused = place(args.run) / "last.pt", []
    if args.auto:
        path, refused = checkpoint.newest_valid(place(args.run))
    folder = path.parent
    chosen = run_config(folder, [*overrides(words), *data_dir(args)])
    with ranks_of(args) as ranks, held(folder, ranks):
        for reason in refused:
            warn(f"passed over: {reason}")
        if args.auto:
            say(f"{path} is the newest valid checkpoint")
        session = runner.resume(chosen, folder, path.name, ranks, warn)
        result = read_result(folder)
        if session.progress.step >= session.last_step and result:
            say(f"{folder} is finished.")
            answer(args, {"folder": str(folder), **result})
        else:
            answer(args, follow(session, logger=args.logger))
