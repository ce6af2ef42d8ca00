"""The command line: ``targetprop train | resume | sweep | reproduce | evaluate | compare | bench | scaling | ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from targetprop import PairingError, __version__
from targetprop.analysis import figures, tables
from targetprop.data import SOURCES, DataError, catalogue, fetch
from targetprop.experiments import bench, reproduce, scaling, sweep
from targetprop.experiments.cells import Place
from targetprop.ranks import RankLost, Ranks
from targetprop.training import checkpoint, config, launch, runner
from targetprop.training.checkpoint import CheckpointError
from targetprop.training.config import Config, ConfigError
from targetprop.training.logging import read_metrics

BAD_INPUT, DIVERGED = 2, 3
console = Console()


def overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    """(key, text) pairs of ``--key value`` and ``--key=value``.

    Raises:
        ConfigError: a word that is not an option, or an option without a value.

    """
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"unexpected '{word}'; overrides are written --key value, such as --optimizer.lr 0.1.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} has no value; write --{key} VALUE.")
            value = rest.pop(0)
        pairs.append((key, value))
    return pairs


def train(args: argparse.Namespace, words: list[str]) -> None:
    """Start a run."""
    chosen = config.load(args.preset, [*overrides(words), *data_dir(args)])
    folder = Path(args.out or Path("runs") / Path(args.preset).stem)
    runner.refuse_used(folder)
    with ranks_of(args) as ranks:
        follow(runner.start(chosen, folder, ranks))


def resume(args: argparse.Namespace, words: list[str]) -> None:
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
        session = runner.resume(chosen, folder, path.name, ranks)
        if session.progress.step >= session.last_step and (folder / "result.json").exists():
            console.print(f"{folder} is finished.")
            return
        follow(session)


class Stopped(Exception):
    """The processes of a run have ended; ``code`` is the command's exit code."""

    def __init__(self, code: int, message: str | None):
        """Keep the code; without a ``message`` the processes have spoken themselves."""
        super().__init__(message)
        self.code = code
        self.message = message


@contextmanager
def ranks_of(args: argparse.Namespace) -> Iterator[Ranks]:
    """The processes to train with: this one, those that torchrun started, or, where several are asked for, new ones.

    Raises:
        Stopped: the work was done by new processes.

    """
    layout = launch.Layout(args.devices, args.nodes, args.layer_ranks, args.rendezvous)
    layout.check()
    if layout.devices * layout.nodes > 1 and not launch.started():
        raise Stopped(*launch.launch(args.words, layout))
    try:
        ranks = launch.join(layout.layer_ranks)
        console.quiet = not ranks.leader
        yield ranks
    finally:
        launch.leave()


def data_dir(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """The override of ``--data-dir``."""
    return [("data.dir", args.data_dir)] if args.data_dir else []


def follow(session: runner.Session, deadline: float = float("inf")) -> None:
    """Run with a progress bar, then draw and print the result."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        label = session.config.algorithm.name
        task = bar.add_task(label, total=session.last_step, completed=session.progress.step, loss=float("nan"))

        def tell(session: runner.Session, loss: float) -> None:
            bar.update(task, completed=session.progress.step, loss=loss)

        result = runner.run(session, tell, deadline)
    if session.ranks.leader:
        curves = {session.folder.name: read_metrics(session.folder / "metrics.jsonl")}
        figures.draw_runs(curves, session.folder / "curves.png")
    console.print(
        f"{session.folder}: test accuracy {100 * result['test']['accuracy']:.2f} %, "
        f"{1000 * result['seconds_per_step']:.1f} ms per step"
    )


def sweep_command(args: argparse.Namespace, words: list[str]) -> None:
    """Train presets over several seeds, or go on with that; then print and write the table."""
    deadline = time.monotonic() + 60 * args.minutes
    folder = writable(args.out)
    found = sweep.cells(args.presets, args.seeds, [*overrides(words), *data_dir(args)], folder)
    for cell in found:
        sweep.run_cell(cell, lambda session: follow(session, deadline))
    table = Table(*sweep.HEADINGS)
    for line in sweep.write(found, folder):
        table.add_row(*sweep.row(line))
    console.print(table)


def reproduce_command(args: argparse.Namespace, words: list[str]) -> None:
    """Make a figure or table of the paper, or go on with that."""
    if words:
        raise ConfigError(f"unexpected '{words[0]}'; see targetprop reproduce --help.")
    if args.seeds is not None and args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds} is out of range; expected at least 1.")
    for name in reproduce.EXPERIMENTS if args.name == "all" else [args.name]:
        folder = writable(args.out or f"reproduce/{args.scale}")
        place = Place(writable(str(folder / name)), args.scale, args.seeds, args.data_dir, lambda t: console.print(f"  {t}"))
        began = time.perf_counter()
        console.print(f"{name}, scale {args.scale}")
        reproduce.EXPERIMENTS[name](place)
        console.print(f"{place.folder / name}.md, .csv, .png, .pdf in {time.perf_counter() - began:.0f} s")


def evaluate(args: argparse.Namespace, words: list[str]) -> None:
    """Print the accuracy of a checkpoint on the test images."""
    folder = Path(args.run)
    chosen = run_config(folder, [*overrides(words), *data_dir(args)])
    path = folder / f"{args.weights}.pt"
    state = checkpoint.load(path)
    session = runner.set_up(chosen, folder)
    runner.load_weights(session.net, state, path)
    scores = runner.accuracy(session.net, session.algo, session.test)
    if args.json:
        print(json.dumps(scores))
    else:
        console.print(f"{path}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


def run_config(folder: Path, settings: Sequence[tuple[str, Any]] = ()) -> Config:
    """The configuration of a run folder.

    Raises:
        ConfigError: the folder holds no run.

    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run (no config.yaml); name the folder that 'targetprop train' made.")
    return config.load(str(path), settings)


def compare(args: argparse.Namespace, words: list[str]) -> None:
    """Print a table of runs and draw them into one picture."""
    if words:
        raise ConfigError(f"unexpected '{words[0]}'; compare takes run folders and --out.")
    rows, lines = {}, []
    for name in args.runs:
        folder = Path(name)
        chosen = run_config(folder)
        label = folder.name if folder.name not in rows else str(folder)
        rows[label] = read_metrics(folder / "metrics.jsonl")
        if not rows[label]:
            raise ConfigError(f"{folder} holds no metrics yet; let it run first.")
        path = folder / "result.json"
        result = json.loads(path.read_text()) if path.exists() else None
        lines.append(tables.summarise(label, chosen.to_dict(), rows[label], result))
    table = Table(*tables.HEADINGS)
    for line in lines:
        table.add_row(*line.cells())
    console.print(table)
    try:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        figures.draw_runs(rows, out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{args.out} cannot be written ({error}); give another --out, ending in .png or .pdf.") from error
    console.print(f"picture: {args.out}")


def bench_command(args: argparse.Namespace, words: list[str]) -> None:
    """Time algorithms side by side; write JSON, a table and a plot."""
    options = {}
    for key, value in overrides(words):
        if not key.startswith(config.OPTIONS):
            raise ConfigError(f"unexpected '--{key}'; see targetprop bench --help.")
        options[key.removeprefix(config.OPTIONS)] = yaml.safe_load(value)
    for name in args.contenders:
        bench.solver_settings(bench.split_name(name)[1])
    for key, least in (("batch_size", 1), ("steps", 10), ("warmup", 1)):
        if getattr(args, key) < least:
            raise ConfigError(f"--{key.replace('_', '-')} {getattr(args, key)} is too small; give at least {least}.")
    out = writable(args.out)
    dataset = catalogue.load(args.data, Path(args.data_dir) if args.data_dir else None)
    shared = {
        key: getattr(args, key) for key in ("batch_size", "compiled", "device", "precision", "memory_format", "threads", "lr")
    }
    channels = tuple(args.channels) if args.channels else None
    settings = [bench.Setting(name, channels, options=options, **shared) for name in args.networks]
    if len(settings) > 1 and (args.channels or options):
        raise ConfigError("--channels and --network.options are those of one network; give one of --networks.")
    for setting in settings:
        bench.check(args.contenders, setting, dataset)
    results = {}
    for setting in settings:
        with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task(setting.network, total=bench.total_steps(args.contenders, args.warmup, args.steps))

            def tell(name: str, steps: int, bar: Progress = bar, task: Any = task, network: str = setting.network) -> None:
                bar.update(task, advance=steps, description=f"{network} {name}")

            found = bench.bench(args.contenders, setting, dataset, args.warmup, args.steps, not args.no_memory, tell)
        results[setting.network] = found
        table = Table(*bench.HEADINGS, title=setting.network)
        for row in found:
            table.add_row(*bench.cells(row))
        console.print(table)
    bench.write(results, settings, args.warmup, out)
    console.print(f"{out / 'bench.json'}, {out / 'bench.md'}, {out / 'bench.png'}")


def scaling_command(args: argparse.Namespace, words: list[str]) -> None:
    """Time and memory along depth, width, batch and noise samples."""
    if words:
        raise ConfigError(f"unexpected '{words[0]}'; see targetprop scaling --help.")
    shared = bench.Setting(device=args.device, threads=args.threads)
    out = writable(args.out)
    dataset = catalogue.load(args.data, Path(args.data_dir) if args.data_dir else None)
    total = sum(len(scaling.AXES[axis]) for axis in args.axes)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("scaling", total=total)

        def tell(name: str, steps: int) -> None:
            bar.update(task, advance=steps, description=name)

        found = scaling.scaling(args.axes, shared, dataset, args.steps, tell=tell)
    scaling.write(found, shared, out)
    console.print(f"{out / 'scaling.json'}, {out / 'scaling.md'}, {out / 'scaling.png'}")


def writable(name: str) -> Path:
    """The folder ``name``, made if need be.

    Raises:
        ConfigError: it cannot be made.

    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); give another --out.") from error
    return folder


def data_command(args: argparse.Namespace, words: list[str]) -> None:
    """List, fetch or check data sets."""
    words = [*([args.name] if args.what == "list" and args.name else []), *words]
    if words:
        raise ConfigError(f"unexpected '{words[0]}'; data takes list, fetch NAME or check NAME, and --data-dir.")
    folder = Path(args.data_dir) if args.data_dir else None
    if args.what == "list":
        table = Table("name", "what it is", "here")
        for source in SOURCES.values():
            table.add_row(source.name, source.about, "yes" if present(source.name, folder) else "–")
        console.print(table)
        return
    if not args.name:
        raise ConfigError(f"data {args.what} needs a name; known are {', '.join(SOURCES)}.")
    if args.what == "fetch":
        with Progress(console=console) as bar:
            paths = fetch.fetch(args.name, folder, Download(bar, args.name))
        console.print(f"{args.name}: " + (", ".join(map(str, paths)) or "ships with the package, nothing to fetch"))
    found = catalogue.load(args.name, folder)
    console.print(
        f"{args.name}: {len(found.train)} training and {len(found.test)} test images of shape {found.in_shape}, "
        f"{found.classes} classes, files intact"
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


def presets(args: argparse.Namespace, words: list[str]) -> None:
    """List the presets, or print the full configuration of one."""
    if words:
        raise ConfigError(f"unexpected '{words[0]}'; presets takes at most one name.")
    if args.name:
        print(yaml.safe_dump(config.load(args.name).to_dict(), sort_keys=False), end="")
        return
    for name in config.presets():
        print(name)


def spread_out(p: argparse.ArgumentParser) -> None:
    """The options of a run in several processes."""
    p.add_argument("--devices", type=int, default=1, help="processes on this node, one per GPU where there are GPUs")
    p.add_argument("--nodes", type=int, default=1, help="machines; give the same command on each")
    p.add_argument("--rendezvous", metavar="HOST:PORT", help="of one of several nodes, where they find each other")
    p.add_argument("--layer-ranks", type=int, default=1, help="how many processes share out the layers; the rest, the batch")


def parser() -> argparse.ArgumentParser:
    """The subcommands; options of the configuration are left for ``overrides``."""
    top = argparse.ArgumentParser("targetprop", description=__doc__, allow_abbrev=False)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.set_defaults(action=action)
        return made

    p = add("train", train, "Start a run from a preset or YAML file; override any key with --key value.")
    p.add_argument("preset", help="a preset's name or a YAML file")
    p.add_argument("--out", help="the run's folder (default runs/PRESET)")
    p.add_argument("--data-dir", help="where data sets lie")
    spread_out(p)
    p = add("resume", resume, "Go on with a run from its last checkpoint.")
    p.add_argument("run", help="the run's folder")
    p.add_argument("--auto", action="store_true", help="from the newest valid checkpoint in the folder or the runs below it")
    p.add_argument("--data-dir", help="where data sets lie")
    spread_out(p)
    p = add("sweep", sweep_command, "Train presets over several seeds; run it again to go on where it was interrupted.")
    p.add_argument("presets", nargs="+", help="presets or YAML files, the one to compare with first")
    p.add_argument("--seeds", type=int, default=3, help="0, 1, ... up to so many")
    p.add_argument("--minutes", type=float, default=float("inf"), help="stop and save after so many minutes")
    p.add_argument("--out", default="sweep", help="the folder of the runs, sweep.json and sweep.md")
    p.add_argument("--data-dir", help="where data sets lie")
    p = add("reproduce", reproduce_command, "Make a figure or table of the paper; run it again to go on where it was.")
    p.add_argument("name", choices=[*reproduce.EXPERIMENTS, "all"])
    p.add_argument("--scale", choices=reproduce.SCALES, default="smoke", help="minutes, hours, or the paper's own (GPU)")
    p.add_argument("--seeds", type=int, help="how many; default the experiment's own number")
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument("--out", help="the folder of cells and results (default reproduce/SCALE)")
    p = add("evaluate", evaluate, "Test a run's weights.")
    p.add_argument("run", help="the run's folder")
    p.add_argument("--weights", choices=("best", "last"), default="last", help="which checkpoint")
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument("--json", action="store_true", help="print JSON")
    p = add("compare", compare, "Print a table of runs and draw them into one picture.")
    p.add_argument("runs", nargs="+", help="run folders")
    p.add_argument("--out", default="comparison.png", help="the picture to write")
    p = add("bench", bench_command, "Time algorithms side by side: speed, memory, angle to the backprop gradient.")
    p.add_argument("contenders", nargs="*", default=["plain", "backprop", "ldrl", "untracked"], help=bench.describe())
    known = f"{', '.join(bench.NETWORKS)}, or package.module:make; --network.options.KEY VALUE as in train"
    p.add_argument("--networks", nargs="+", default=["simple_vgg"], help=f"what they train: {known}")
    p.add_argument("--compiled", action="store_true", help="run plain and attach through torch.compile")
    p.add_argument("--channels", nargs="+", type=int, help="widths of the network, if there is one")
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument("--lr", type=float, default=0.05, help="of SGD with momentum 0.9 and weight decay 1e-4")
    p.add_argument("--warmup", type=int, default=50, help="untimed steps of each contender")
    p.add_argument("--steps", type=int, default=100, help="timed steps of each contender, in turns of 10")
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", choices=get_args(config.Precision), default="float32")
    p.add_argument("--memory-format", choices=get_args(config.MemoryFormat), default="auto")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's choice")
    p.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    p.add_argument("--data", choices=list(SOURCES), default="cifar10", help="the images")
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument("--out", default="bench", help="the folder for bench.json, bench.md, bench.png")
    p = add("scaling", scaling_command, "Time and memory of L-DRL and backprop along depth, width, batch and noise samples.")
    p.add_argument("--axes", nargs="+", choices=list(scaling.AXES), default=list(scaling.AXES))
    p.add_argument("--steps", type=int, default=30, help="timed steps of each at each point, in turns of 10")
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's choice")
    p.add_argument("--data", choices=list(SOURCES), default="cifar10", help="the images")
    p.add_argument("--data-dir", help="where data sets lie")
    p.add_argument("--out", default="scaling", help="the folder for scaling.json, scaling.md, scaling.png")
    p = add("data", data_command, "List, fetch or check data sets.")
    p.add_argument("what", choices=("list", "fetch", "check"))
    p.add_argument("name", nargs="?", help="a data set")
    p.add_argument("--data-dir", help="where data sets lie")
    p = add("presets", presets, "List the presets, or print one in full.")
    p.add_argument("name", nargs="?", help="a preset")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 2 bad input (one sentence on standard error), 3 training diverged, 4 contact with another rank lost, 128 + n
    stopped by signal n. In a run of several processes rank 0 speaks of what they all see.
    """
    args, rest = parser().parse_known_args(argv)
    args.words = sys.argv[1:] if argv is None else list(argv)
    try:
        args.action(args, rest)
    except Stopped as stopped:
        return complain(stopped, stopped.code) if stopped.message else stopped.code
    except RankLost as error:
        return launch.LOST if launch.LAUNCHED in os.environ else complain(error, launch.LOST)
    except (ConfigError, DataError, CheckpointError, PairingError) as error:
        return complain(error, BAD_INPUT)
    except runner.Diverged as error:
        return DIVERGED if rank() else complain(error, DIVERGED)
    except runner.Interrupted as error:
        return 128 + error.number if rank() else complain(error, 128 + error.number)
    except OSError as error:
        return complain(
            OSError(f"{error.filename or 'a file'}: {error.strerror or error}; free it or choose another place."), BAD_INPUT
        )
    except KeyboardInterrupt:
        return complain(RuntimeError("stopped before training began; nothing was lost."), 130)
    return 0


def complain(error: Exception, code: int) -> int:
    """Print one sentence on standard error."""
    who = f"targetprop, rank {rank()}" if launch.started() else "targetprop"
    print(f"{who}: {error}", file=sys.stderr)
    return code


def rank() -> int:
    """The number of this process among those of a run; 0 if it is alone."""
    return int(os.environ["RANK"]) if launch.started() else 0


if __name__ == "__main__":
    sys.exit(main())
