"""Time algorithms side by side: speed, memory, angle to the backprop gradient."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from targetprop.benchmarking import bench, contenders
from targetprop.benchmarking import report as bench_report
from targetprop.commands.common import answer, console, demand_turns, overrides, writable
from targetprop.data import SOURCES, catalogue
from targetprop.training import config
from targetprop.training.config import ConfigError, place
from targetprop.training.files import parse_yaml

EXAMPLE = "targetprop bench plain attach --networks vit --data digits"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument(
        "contenders",
        nargs="*",
        default=["plain", "backprop", "ldrl", "untracked"],
        help=contenders.describe(),
    )
    known = (
        f"{', '.join(contenders.NETWORKS)}, or package.module:make; "
        "--network.options.KEY VALUE as in train"
    )
    p.add_argument(
        "--networks", nargs="+", default=["simple_vgg"], help=f"what they train: {known}"
    )
    p.add_argument(
        "--compiled", action="store_true", help="run plain and attach through torch.compile"
    )
    p.add_argument("--channels", nargs="+", type=int, help="widths of the network, if there is one")
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument(
        "--lr", type=float, default=0.05, help="of SGD with momentum 0.9 and weight decay 1e-4"
    )
    p.add_argument("--warmup", type=int, default=50, help="untimed steps of each contender")
    p.add_argument(
        "--steps", type=int, default=100, help="timed steps of each contender, in turns of 10"
    )
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", choices=get_args(config.Precision), default="float32")
    p.add_argument("--memory-format", choices=get_args(config.MemoryFormat), default="auto")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's choice")
    p.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    p.add_argument("--data", choices=list(SOURCES), default="cifar10", help="the images")
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument("--out", default="bench", help="the folder for bench.json, bench.md, bench.png")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Time algorithms side by side; write JSON, a table and a plot."""
    options = {}
    for key, value in overrides(words):
        if not key.startswith(config.OPTIONS):
            raise ConfigError(f"unexpected '--{key}'; see targetprop bench --help.")
        options[key.removeprefix(config.OPTIONS)] = parse_yaml(value, key)
    for name in args.contenders:
        contenders.split_name(name)
    demand_turns(args.steps)
    if args.warmup < 1:
        raise ConfigError(f"--warmup {args.warmup} is too small; give at least 1.")
    shared = {
        key: getattr(args, key)
        for key in (
            "batch_size",
            "compiled",
            "device",
            "precision",
            "memory_format",
            "threads",
            "lr",
        )
    }
    channels = tuple(args.channels) if args.channels else None
    settings = [
        contenders.Setting(name, channels, options=options, **shared) for name in args.networks
    ]
    if len(settings) > 1 and (args.channels or options):
        raise ConfigError(
            "--channels and --network.options are those of one network; give one of --networks."
        )
    out = writable(args.out)
    dataset = catalogue.load(args.data, None if args.data_dir is None else place(args.data_dir))
    for setting in settings:
        bench.check(args.contenders, setting, dataset)
    results = {}
    for setting in settings:
        with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task(
                setting.network, total=bench.total_steps(args.contenders, args.warmup, args.steps)
            )

            def tell(
                name: str,
                steps: int,
                bar: Progress = bar,
                task: Any = task,
                network: str = setting.network,
            ) -> None:
                bar.update(task, advance=steps, description=f"{network} {name}")

            found = bench.bench(
                args.contenders, setting, dataset, args.warmup, args.steps, not args.no_memory, tell
            )
        results[setting.network] = found
        table = Table(*bench_report.HEADINGS, title=setting.network)
        for row in found:
            table.add_row(*bench_report.cells(row))
        console.print(table)
    record = bench_report.write(results, settings, args.warmup, out)
    console.print(f"{out / 'bench.json'}, {out / 'bench.md'}, {out / 'bench.png'}")
    answer(args, record)
