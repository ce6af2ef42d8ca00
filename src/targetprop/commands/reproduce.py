"""Make a figure or table of the paper; run it again to go on where it was."""

from __future__ import annotations

import argparse
import time

from targetprop.commands.common import answer, bar_of, console, no_more, until, writable
from targetprop.experiments import evidence, reproduce
from targetprop.experiments.cells import Place
from targetprop.training import loop
from targetprop.training.config import ConfigError

EXAMPLE = "targetprop reproduce figure-4.2 --scale cpu --data-dir DATA"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("name", choices=[*reproduce.EXPERIMENTS, "all"])
    p.add_argument(
        "--scale",
        choices=reproduce.SCALES,
        default="smoke",
        help="minutes, hours, or the paper's own (GPU)",
    )
    p.add_argument("--seeds", type=int, help="how many; default the experiment's own number")
    p.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop and save after so many minutes"
    )
    p.add_argument(
        "--only",
        nargs="+",
        choices=evidence.PARTS,
        default=[],
        help="these parts of evidence alone",
    )
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument("--out", help="the folder of cells and results (default reproduce/SCALE)")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Make a figure or table of the paper, or go on with that."""
    no_more(words, "reproduce")
    if args.only and args.name != "evidence":
        raise ConfigError(f"--only {args.only[0]} is a part of evidence; leave it out.")
    if args.seeds is not None and args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds} is out of range; expected at least 1.")
    deadline = until(args.minutes)
    written = []
    for name in reproduce.EXPERIMENTS if args.name == "all" else [args.name]:
        folder = writable(f"reproduce/{args.scale}" if args.out is None else args.out)
        began = time.perf_counter()
        console.print(f"{name}, scale {args.scale}")
        with bar_of("run") as watch:
            place = Place(
                writable(str(folder / name)),
                args.scale,
                args.seeds,
                args.data_dir,
                lambda t: console.print(f"  {t}"),
                watch,
                deadline,
                args.only,
            )
            try:
                reproduce.EXPERIMENTS[name](place)
            except loop.Interrupted as error:
                text = f"stopped; go on with the same command ({place.folder} has all of it)."
                raise loop.Interrupted(text, error.number) from error
        console.print(
            f"{place.folder / name}.md, .csv, .png, .pdf in {time.perf_counter() - began:.0f} s"
        )
        written.append(str(place.folder / name))
    answer(args, [f"{stem}.{kind}" for stem in written for kind in ("md", "csv", "png", "pdf")])
