"""Time and memory of L-DRL and backprop along depth, width and batch."""

from __future__ import annotations

import argparse

from rich.progress import Progress, TimeElapsedColumn

from targetprop.benchmarking import contenders, scaling
from targetprop.commands.common import answer, console, demand_turns, no_more, writable
from targetprop.data import SOURCES, catalogue
from targetprop.training.config import place

EXAMPLE = "targetprop scaling --data-dir DATA"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("--axes", nargs="+", choices=list(scaling.AXES), default=list(scaling.AXES))
    p.add_argument(
        "--steps", type=int, default=30, help="timed steps of each at each point, in turns of 10"
    )
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's choice")
    p.add_argument("--data", choices=list(SOURCES), default="cifar10", help="the images")
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument(
        "--out", default="scaling", help="the folder for scaling.json, scaling.md, scaling.png"
    )


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Time and memory along depth, width and batch."""
    no_more(words, "scaling")
    demand_turns(args.steps)
    shared = contenders.Setting(device=args.device, threads=args.threads)
    out = writable(args.out)
    dataset = catalogue.load(args.data, None if args.data_dir is None else place(args.data_dir))
    total = sum(len(scaling.AXES[axis]) for axis in args.axes)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("scaling", total=total)

        def tell(name: str, steps: int) -> None:
            bar.update(task, advance=steps, description=name)

        found = scaling.scaling(args.axes, shared, dataset, args.steps, tell=tell)
    record = scaling.write(found, shared, out)
    console.print(f"{out / 'scaling.json'}, {out / 'scaling.md'}, {out / 'scaling.png'}")
    answer(args, record)
