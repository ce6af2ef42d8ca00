"""Go on with a run from its last checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from targetprop.commands.common import (
    console,
    data_dir,
    follow,
    overrides,
    ranks_of,
    run_config,
    spread_out,
)
from targetprop.training import checkpoint, loop


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("run", help="the run's folder")
    p.add_argument(
        "--auto",
        action="store_true",
        help="from the newest valid checkpoint in the folder or the runs below it",
    )
    p.add_argument("--data-dir", help="where data sets lie")
    spread_out(p)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Go on with a run."""
    path, refused = Path(args.run) / "last.pt", []
    if args.auto:
        path, refused = checkpoint.newest_valid(Path(args.run))
    folder = path.parent
    chosen = run_config(folder, [*overrides(words), *data_dir(args)])
    with ranks_of(args) as ranks:
        for reason in refused:
            console.print(f"passed over: {reason}", soft_wrap=True)
        if args.auto:
            console.print(f"{path} is the newest valid checkpoint", soft_wrap=True)
        session = loop.resume(chosen, folder, path.name, ranks)
        if session.progress.step >= session.last_step and (folder / "result.json").exists():
            console.print(f"{folder} is finished.")
            return
        follow(session)
