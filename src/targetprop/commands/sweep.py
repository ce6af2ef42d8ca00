"""Train presets over several seeds; run it again to go on where it was interrupted."""

from __future__ import annotations

import argparse

from rich.table import Table

from targetprop.commands.common import (
    answer,
    console,
    data_dir,
    follow,
    logged,
    overrides,
    report_of,
    say,
    until,
    writable,
)
from targetprop.training import loggers, sweep
from targetprop.training.config import place
from targetprop.training.loop import Diverged

EXAMPLE = "targetprop sweep digits-backprop digits-ldrl --seeds 5"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument(
        "presets", nargs="+", help="presets or YAML files, the one to compare with first"
    )
    p.add_argument("--seeds", type=int, default=3, help="0, 1, ... up to so many")
    p.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop and save after so many minutes"
    )
    p.add_argument("--out", default="sweep", help="the folder of the runs, sweep.json and sweep.md")
    p.add_argument("--data-dir", help="where data sets lie")
    logged(p)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Train presets over several seeds, or go on with that; then print and write the table."""
    loggers.demand(args.logger)
    deadline = until(args.minutes)
    found = sweep.cells(
        args.presets, args.seeds, [*overrides(words), *data_dir(args)], place(args.out)
    )
    folder = writable(args.out)
    diverged = []
    for cell in found:
        why = sweep.run_cell(cell, lambda session: follow(session, deadline, args.logger))
        if why:
            diverged.append(str(cell.folder))
            say(why)
    if all(cell.result is None for cell in found):
        raise Diverged("no run of the sweep came to its end.")
    table = Table(*sweep.HEADINGS)
    lines, record = sweep.write(found, folder)
    for line in lines:
        table.add_row(*sweep.row(line))
    console.print(table)
    answer(args, record)
    say(f"as an interactive page: {report_of([args.out])}")
    if diverged:
        raise Diverged(f"{', '.join(diverged)} diverged; the table is of the other runs.")
