"""Presets trained over several seeds, a run folder a cell; an interrupted sweep goes on."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targetprop.analysis.tables import markdown, number
from targetprop.training import config, loop, runner, session
from targetprop.training.checkpoint import write_text
from targetprop.training.config import Config, ConfigError
from targetprop.training.files import FileError, read_json
from targetprop.training.lock import locked
from targetprop.training.logging import provenance, read_result


@dataclass(frozen=True)
class Cell:
    """One preset with one seed."""

    name: str
    seed: int
    config: Config
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """What the run wrote at its end, if it has ended."""
        return read_result(self.folder)


def cells(
    names: Sequence[str], seeds: int, settings: Sequence[tuple[str, Any]], folder: Path
) -> list[Cell]:
    """Every cell of a sweep, seed by seed.

    Raises:
        ConfigError: an unknown preset or setting, no seed, or a folder of another configuration.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds} is out of range; expected at least 1.")
    if any(key == "seed" for key, _ in settings):
        raise ConfigError("seed would change nothing: a sweep takes seeds 0, 1, ...; give --seeds.")
    labels = distinct(names)
    found = []
    for seed in range(seeds):
        for name in names:
            chosen = config.load(name, [*settings, ("seed", seed)])
            cell = Cell(name, seed, chosen, folder / labels[name] / f"seed-{seed}")
            runner.refuse_other(chosen, cell.folder)
            found.append(cell)
    return found


def distinct(names: Sequence[str]) -> dict[str, str]:
    """The folder of every preset or file: its stem, its whole name where stems are alike.

    Raises:
        ConfigError: one is named twice.
    """
    files = [str(Path(name).resolve()) if Path(name).exists() else name for name in names]
    twice = [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]
    if twice:
        raise ConfigError(f"'{twice[-1]}' is named twice; its seeds would be one run each.")
    stems = [Path(name).stem for name in names]
    alike = {name for name in names if stems.count(Path(name).stem) > 1}
    labels = {name: name.replace("/", "-") if name in alike else Path(name).stem for name in names}
    for name, label in labels.items():
        other = next((n for n in labels if n != name and labels[n] == label), None)
        if other is not None:
            raise ConfigError(
                f"'{other}' and '{name}' would share the folder {label}; rename one of the files."
            )
    return labels


def run_cell(cell: Cell, follow: Callable[[session.Session], object]) -> str | None:
    """Start the cell's run, go on with it, or leave it alone if it has ended.

    Returns:
        why it ended without a result, if it diverged: the sweep goes on.
    """
    if cell.result is None:
        with locked(cell.folder):
            try:
                follow(runner.take_up(cell.config, cell.folder))
            except loop.Diverged as error:
                return f"{cell.folder} diverged: {error}"
    return None


@dataclass(frozen=True)
class Summary:
    """One preset over its seeds.

    Attributes:
        name: of the preset.
        seeds: that have ended.
        accuracy: mean test accuracy, of the selected weights.
        accuracy_std: standard deviation over the seeds; None for one.
        ms: mean milliseconds per step, measurements and evaluation apart.
        ratio: of ms, to the first preset's.
        minutes: mean time in steps of a run.
    """

    name: str
    seeds: int
    accuracy: float
    accuracy_std: float | None
    ms: float
    ratio: float
    minutes: float


def summarise(found: Sequence[Cell]) -> list[Summary]:
    """A summary per preset with an ended run, in the order given."""
    lines: list[Summary] = []
    for name in dict.fromkeys(cell.name for cell in found):
        results = [cell.result for cell in found if cell.name == name]
        ended = [result for result in results if result is not None]
        if not ended:
            continue
        accuracies = [result["test"]["accuracy"] for result in ended]
        seconds = statistics.mean(result["seconds_per_step"] for result in ended)
        base = lines[0].ms if lines else 1000 * seconds
        spread = statistics.stdev(accuracies) if len(ended) > 1 else None
        minutes = statistics.mean(
            result["seconds_per_step"] * result["steps"] / 60 for result in ended
        )
        mean = statistics.mean(accuracies)
        lines.append(
            Summary(name, len(ended), mean, spread, 1000 * seconds, 1000 * seconds / base, minutes)
        )
    return lines


HEADINGS = ("preset", "seeds", "test accuracy", "ms a step", "×", "minutes a run")


def row(line: Summary) -> tuple[str, ...]:
    """A summary as text, under ``HEADINGS``."""
    spread = "" if line.accuracy_std is None else f" ± {100 * line.accuracy_std:.2f}"
    accuracy = f"{100 * line.accuracy:.2f}{spread} %"
    return (
        line.name,
        str(line.seeds),
        accuracy,
        number(line.ms, 2),
        number(line.ratio, 2),
        number(line.minutes, 1),
    )


def write(found: Sequence[Cell], folder: Path) -> tuple[list[Summary], dict[str, Any]]:
    """Write ``sweep.json`` and ``sweep.md`` into ``folder``; returns the lines and the former."""
    lines = summarise(found)
    try:
        record = read_json(found[0].folder / "environment.json")
    except (FileNotFoundError, FileError):
        record = {}  # the results stand by themselves
    plain = {"environment": record, "results": [dataclasses.asdict(line) for line in lines]}
    write_text(folder / "sweep.json", json.dumps(plain, indent=2) + "\n")
    write_text(
        folder / "sweep.md",
        provenance(record) + "\n" + markdown(HEADINGS, [row(line) for line in lines]),
    )
    return lines, plain
