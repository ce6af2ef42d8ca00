"""Start a run from a preset or YAML file; override any key with --key value."""

from __future__ import annotations

import argparse
from pathlib import Path

from targetprop.commands.common import (
    answer,
    data_dir,
    follow,
    held,
    logged,
    overrides,
    ranks_of,
    spread_out,
)
from targetprop.training import config, loggers, runner
from targetprop.training.config import place

EXAMPLE = "targetprop train digits-ldrl --optimizer.lr 0.1 --epochs 20 --out runs/mine"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("preset", help="a preset's name or a YAML file")
    p.add_argument("--out", help="the run's folder (default runs/PRESET)")
    p.add_argument("--data-dir", help="where data sets lie")
    logged(p)
    spread_out(p)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Start a run."""
    loggers.demand(args.logger)
    chosen = config.load(args.preset, [*overrides(words), *data_dir(args)])
    folder = place(str(Path("runs") / Path(args.preset).stem) if args.out is None else args.out)
    runner.refuse_used(folder)
    with ranks_of(args) as ranks, held(folder, ranks):
        answer(args, follow(runner.start(chosen, folder, ranks), logger=args.logger))
