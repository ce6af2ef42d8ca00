"""List, fetch or check data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from targetprop.commands.common import answer, console
from targetprop.data import SOURCES, DataError, catalogue, fetch
from targetprop.training.config import ConfigError, place

EXAMPLE = "targetprop data fetch cifar10"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("what", choices=("list", "fetch", "check"))
    p.add_argument("name", nargs="?", help="a data set")
    p.add_argument("--data-dir", help="where data sets lie")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """List, fetch or check data sets."""
    words = [*([args.name] if args.what == "list" and args.name else []), *words]
    if words:
        raise ConfigError(
            f"unexpected '{words[0]}'; data takes list, fetch NAME or check NAME, and --data-dir."
        )
    folder = None if args.data_dir is None else place(args.data_dir)
    if args.what == "list":
        table = Table("name", "what it is", "here")
        sources = [
            {"name": s.name, "about": s.about, "here": present(s.name, folder)}
            for s in SOURCES.values()
        ]
        for s in sources:
            table.add_row(s["name"], s["about"], "yes" if s["here"] else "–")
        console.print(table)
        answer(args, sources)
        return
    if not args.name:
        raise ConfigError(f"data {args.what} needs a name; known are {', '.join(SOURCES)}.")
    if args.what == "fetch":
        with Progress(console=console) as bar:
            paths = fetch.fetch(args.name, folder, Download(bar, args.name))
        console.print(
            f"{args.name}: "
            + (", ".join(map(str, paths)) or "ships with the package, nothing to fetch")
        )
    found = catalogue.load(args.name, folder)
    console.print(
        f"{args.name}: {len(found.train)} training and {len(found.test)} test images of shape "
        f"{found.in_shape}, {found.classes} classes, files intact"
        + (f"; passed over: {found.skipped}" if found.skipped else "")
    )
    answer(
        args,
        {
            "name": args.name,
            "train": len(found.train),
            "test": len(found.test),
            "in_shape": found.in_shape,
            "classes": found.classes,
            "passed_over": found.skipped,
        },
    )


def present(name: str, folder: Path | None) -> bool:
    """Whether the files of a data set are there."""
    if name in ("digits", "folder"):
        return name == "digits"
    try:
        catalogue.locate(name, folder)
    except DataError:
        return False
    return True


class Download:
    """A rich progress bar with the methods that pooch calls."""

    def __init__(self, bar: Progress, name: str):
        """Show downloads of the set ``name`` in ``bar``."""
        self.bar, self.name = bar, name
        self.total = 0
        self.task = None

    def update(self, count: int) -> None:
        """``count`` more bytes have come."""
        if self.task is None:
            self.task = self.bar.add_task(self.name, total=self.total or None)
        self.bar.update(self.task, advance=count, total=self.total or None)

    def reset(self) -> None:
        """Pooch calls this at the end, before a last update that counts everything again."""
        self.task = None

    def close(self) -> None:
        """Nothing is held open."""
