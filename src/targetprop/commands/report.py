"""Write one interactive page about runs: curves, angles, costs, settings; it works offline."""

from __future__ import annotations

import argparse

from targetprop.commands.common import answer, no_more, say, warn
from targetprop.report import page as report_page
from targetprop.training.config import ConfigError, place

EXAMPLE = "targetprop report runs/mine runs/other --out report.html"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, or folders of runs such as a sweep's"
    )
    p.add_argument("--out", default="report.html", help="the page to write")
    p.add_argument("--title", default="Training report", help="its heading")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Read the runs and write the page."""
    no_more(words, "report")
    out = place(args.out)
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise ConfigError(f"--out {args.out} is no name of a page; give one that ends in .html.")
    groups = report_page.write(args.runs, out, args.title, args.words)
    runs = [one for group in groups for one in group.runs]
    open_runs = sum(one.result is None for one in runs)
    of_them = f", {open_runs} of them unfinished" if open_runs else ""
    say(f"report: {out} ({len(runs)} run{'s' * (len(runs) != 1)}{of_them}); open it in a browser")
    for one in runs:
        for note in one.notes:
            warn(f"{one.folder}: {note}")
    found = [{"folder": str(one.folder), "finished": one.result is not None} for one in runs]
    answer(args, {"page": str(out), "runs": found})
