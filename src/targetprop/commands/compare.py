"""Print a table of runs and draw them into one picture."""

from __future__ import annotations

import argparse
import dataclasses

from rich.table import Table

from targetprop.analysis import figures, tables
from targetprop.commands.common import answer, console, no_more, report_of, run_config, say, warn
from targetprop.report.runs import runs_below
from targetprop.training.config import ConfigError, place
from targetprop.training.logging import read_metrics, read_result

EXAMPLE = "targetprop compare runs/mine runs/other --out comparison.png"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("runs", nargs="+", help="run folders, or folders of such")
    p.add_argument("--out", default="comparison.png", help="the picture to write")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Print a table of runs and draw them into one picture."""
    no_more(words, "compare")
    rows, lines, seen = {}, [], set()
    for folder in [run for name in args.runs for run in runs_below(place(name)) or [place(name)]]:
        if folder.resolve() in seen:
            raise ConfigError(f"{folder} is named twice; name each run once.")
        seen.add(folder.resolve())
        chosen = run_config(folder)
        label = folder.name if folder.name not in rows else str(folder)
        rows[label] = read_metrics(folder / "metrics.jsonl")
        if not rows[label]:
            raise ConfigError(f"{folder} holds no metrics yet; let it run first.")
        result = read_result(folder)
        if result is None and (folder / "result.json").exists():
            warn(f"passed over: {folder}/result.json is damaged; resume the run to write it anew")
        lines.append(tables.summarise(label, chosen.to_dict(), rows[label], result))
    table = Table(*tables.HEADINGS)
    for line in lines:
        table.add_row(*line.cells())
    console.print(table)
    try:
        out = place(args.out)
        if not out.suffix or out.is_dir():
            raise ValueError("it is no name of a picture")
        out.parent.mkdir(parents=True, exist_ok=True)
        figures.draw_runs(rows, out)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{args.out} cannot be written ({error}); give another --out, ending in .png or .pdf."
        ) from error
    answer(args, [dataclasses.asdict(line) for line in lines])
    say(f"picture: {out}")
    say(f"as an interactive page: {report_of(args.runs)}")
