"""What several commands share: overrides, folders, the progress bar."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from targetprop.analysis import figures
from targetprop.commands import terminal
from targetprop.ranks import Ranks
from targetprop.training import config, launch, loggers, loop
from targetprop.training.config import Config, ConfigError, place
from targetprop.training.lock import locked
from targetprop.training.logging import read_metrics

console = Console(width=terminal.width())
"""For what people read: tables, progress, pictures' names."""
notes = Console(width=terminal.width(), stderr=True)
"""For what must be seen though nobody asked: a file passed over, a logger that failed."""


def overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    """(key, text) pairs of ``--key value`` and ``--key=value``.

    Raises:
        ConfigError: a word that is not an option, or an option without a value.
    """
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(
                f"unexpected '{word}'; overrides are written --key value, "
                "such as --optimizer.lr 0.1."
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} has no value; write --{key} VALUE.")
            value = rest.pop(0)
        pairs.append((key, value))
    return pairs


def data_dir(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """The override of ``--data-dir``."""
    return [] if args.data_dir is None else [("data.dir", str(place(args.data_dir)))]


def no_more(words: Sequence[str], command: str) -> None:
    """Refuse words that a command without overrides does not know.

    Raises:
        ConfigError: there are some.
    """
    if words:
        raise ConfigError(f"unexpected '{words[0]}'; see targetprop {command} --help.")


def writable(name: str) -> Path:
    """The folder ``name``, made if need be.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = place(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); give another --out."
        ) from error
    return folder


def run_config(folder: Path, settings: Sequence[tuple[str, Any]] = ()) -> Config:
    """The configuration of a run folder.

    Raises:
        ConfigError: the folder holds no run.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no run (no config.yaml); name the folder that 'targetprop train' made."
        )
    return config.load(str(path), settings)


def until(minutes: float) -> float:
    """The ``time.monotonic()`` at which so many minutes have passed.

    Raises:
        ConfigError: they are no time.
    """
    if not minutes >= 0:
        raise ConfigError(f"--minutes {minutes:g} is out of range; expected at least 0.")
    return time.monotonic() + 60 * minutes


def demand_turns(steps: int) -> None:
    """Refuse a number of timed steps that are no whole turns.

    Raises:
        ConfigError: they are not.
    """
    if steps < 10 or steps % 10:
        raise ConfigError(f"--steps {steps} is no number of turns; give 10, 20, 30 and so on.")


ELSEWHERE = ("data.dir", "device", "dtype", "compile", "memory_format")
"""Settings of where and how a finished run's network is run."""


def finished_config(folder: Path, settings: Sequence[tuple[str, Any]]) -> Config:
    """The configuration of a run whose weights are looked at, here or there, as they are.

    Raises:
        ConfigError: the folder holds no run, or a setting has been trained with.
    """
    chosen, own = run_config(folder, settings), run_config(folder)
    before, now = dict(config.flat(own.to_dict())), dict(config.flat(chosen.to_dict()))
    for key in {**before, **now}:
        if before.get(key) != now.get(key) and key not in ELSEWHERE:
            raise ConfigError(
                f"{key}={now.get(key)} is not that of the run ({before.get(key)}), whose weights "
                f"are as they are; leave it out, or train anew."
            )
    return chosen


class Stopped(Exception):
    """The processes of a run have ended; ``code`` is the command's exit code."""

    def __init__(self, code: int, message: str | None):
        """Keep the code; without a ``message`` the processes have spoken themselves."""
        super().__init__(message)
        self.code = code
        self.message = message


def say(text: str) -> None:
    """Print a line whole, whatever is in it."""
    console.print(terminal.harmless(text), markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line on standard error, also if all else is to be quiet."""
    notes.print(terminal.harmless(text), markup=False, highlight=False, soft_wrap=True)


def loudness(p: argparse.ArgumentParser) -> None:
    """The options of how much is printed, and for whom; every command has them."""
    p.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON; tables and progress then go to standard error",
    )
    p.add_argument("--quiet", action="store_true", help="no tables, no progress; errors alone")


def heed(args: argparse.Namespace) -> None:
    """Speak as :func:`loudness` has it."""
    console.stderr, console.quiet, notes.quiet = args.json, args.quiet, False


def answer(args: argparse.Namespace, document: Any) -> None:
    """Print a command's result if JSON was asked for; numbers that are not finite become null."""
    if args.json and not notes.quiet:
        plain = json.loads(json.dumps(document, default=str), parse_constant=lambda _: None)
        print(json.dumps(plain))


def report_of(names: Sequence[str]) -> str:
    """The command that shows runs in one interactive page."""
    return shlex.join(["targetprop", "report", *names, "--out", "report.html"])


@contextmanager
def held(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Lock a run's folder, once for all its processes."""
    with locked(folder) if ranks.leader else nullcontext():
        yield


@contextmanager
def ranks_of(args: argparse.Namespace) -> Iterator[Ranks]:
    """The processes to train with: this one, torchrun's or, where several are asked for, new ones.

    Raises:
        Stopped: the work was done by new processes.
    """
    layout = launch.Layout(
        args.devices, args.nodes, args.layer_ranks, args.rendezvous, args.timeout
    )
    layout.check()
    if layout.devices * layout.nodes > 1 and not launch.started():
        raise Stopped(*launch.launch(args.words, layout))
    try:
        ranks = launch.join(layout.layer_ranks, layout.timeout)
        notes.quiet = not ranks.leader
        console.quiet |= notes.quiet
        yield ranks
    finally:
        launch.leave()


def spread_out(p: argparse.ArgumentParser) -> None:
    """The options of a run in several processes."""
    p.add_argument(
        "--devices",
        type=int,
        default=1,
        help="processes on this node, one per GPU where there are GPUs",
    )
    p.add_argument("--nodes", type=int, default=1, help="machines; give the same command on each")
    p.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help="of one of several nodes, where they find each other",
    )
    p.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="to wait for the other processes before training",
    )
    p.add_argument(
        "--layer-ranks",
        type=int,
        default=1,
        help="how many processes share out the layers; the rest, the batch",
    )


def logged(p: argparse.ArgumentParser) -> None:
    """The option of a logger."""
    p.add_argument(
        "--logger",
        choices=(*loggers.LOGGERS, "none"),
        help="where metrics go too (default: where the run's have gone so far, if anywhere)",
    )


@contextmanager
def bar_of(label: str) -> Iterator[loop.Tell]:
    """A bar of a run's steps; of several runs, one after another, that of the present one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=None, visible=False, loss=float("nan"))
        shown: loop.Session | None = None

        def tell(session: loop.Session, loss: float) -> None:
            nonlocal shown
            if session is not shown:
                shown = session
                bar.reset(task, total=session.last_step, visible=True)
            bar.update(task, completed=session.progress.step, loss=loss)

        yield tell


def follow(
    session: loop.Session, deadline: float = float("inf"), logger: str | None = None
) -> dict[str, Any]:
    """Run with a progress bar and a logger, then draw and print the result.

    Returns:
        what ``result.json`` holds, and the folder.
    """
    label = session.config.algorithm.name
    with loggers.logging(logger, session, warn) as also, bar_of(label) as tell:
        tell(session, float("nan"))
        result = loop.run(session, tell, deadline, also)
    if session.ranks.leader:
        curves = {session.folder.name: read_metrics(session.folder / "metrics.jsonl")}
        try:
            figures.draw_runs(curves, session.folder / "curves.png")
        except KeyboardInterrupt:
            raise Stopped(
                130, f"stopped while curves were drawn; {session.folder} has its result."
            ) from None
    last = f" (of the last weights: {100 * result['test_last']['accuracy']:.2f} %)"
    say(
        f"{session.folder}: test accuracy {100 * result['test']['accuracy']:.2f} %"
        f"{'' if result['validation_accuracy'] is None else last}, "
        f"{1000 * result['seconds_per_step']:.1f} ms per step"
    )
    return {"folder": str(session.folder), **result}
