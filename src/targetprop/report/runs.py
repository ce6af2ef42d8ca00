"""What run folders hold, read for a report, and which runs differ only in their seed."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from targetprop.training import config, files
from targetprop.training.config import Config, ConfigError
from targetprop.training.files import FileError
from targetprop.training.logging import is_row, read_result

DEPTH = 4
"""Levels of folders below a named one in which runs are looked for."""

LONGEST = 12
"""Settings beside a preset's in a command; with more, the run's own file is named instead."""

ASIDE = ("seed", "data.dir")
"""Settings in which runs of one group may differ."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it lies.
        settings: dotted keys and values of its configuration.
        rows: of its metrics.
        result: what it wrote at its end; None while it is unfinished.
        environment: versions, commit, device, command.
        notes: what was passed over, in sentences.
    """

    folder: Path
    settings: dict[str, Any]
    rows: list[Row]
    result: dict[str, Any] | None
    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The last step with a row."""
        return max((row["step"] for row in self.rows), default=0)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed; ``label`` names them on the page."""

    label: str
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """Of all its runs."""
        return {k: v for k, v in self.runs[0].settings.items() if k != "seed"}

    @property
    def algorithm(self) -> str:
        """Its name, and its solver's."""
        name, solver = (self.runs[0].settings.get(f"algorithm.{k}") for k in ("name", "solver"))
        return f"{name} ({solver})" if solver else str(name)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def gather(names: Sequence[str]) -> list[Run]:
    """The runs of folders; a folder without a run of its own stands for all those below it.

    Raises:
        ConfigError: a folder holds no run, or a configuration that is none.
        FileError: a file of a run cannot be read at all.
    """
    found: dict[Path, Run] = {}
    for name in names:
        folder = config.place(name)
        below = runs_below(folder)
        if not below:
            raise ConfigError(
                f"{folder} holds no run (no config.yaml in it or below it); "
                "name the folder that 'targetprop train' or 'targetprop sweep' made."
            )
        for path in below:
            if path.resolve() not in found:
                found[path.resolve()] = read(path)
    return list(found.values())


def runs_below(folder: Path) -> list[Path]:
    """The folders with a config.yaml in ``folder``, at most ``DEPTH`` levels down, in order."""
    found = []
    for where, folders, names in os.walk(folder):
        here = Path(where)
        if "config.yaml" in names:
            found.append(here)
        if "config.yaml" in names or len(here.relative_to(folder).parts) >= DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found, key=in_order)


def in_order(path: Path) -> list[Any]:
    """A key by which seed-10 comes after seed-2."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read(folder: Path) -> Run:
    """A run folder; damaged rows, a damaged result and a damaged environment are passed over.

    Raises:
        ConfigError: its configuration is none.
        FileError: its metrics are no regular file.
    """
    try:
        values = files.read_yaml(folder / "config.yaml")
    except FileError as error:
        raise ConfigError(str(error)) from error
    settings = dict(config.flat(values)) if isinstance(values, dict) else {}
    if not isinstance(settings.get("algorithm.name"), str):
        raise ConfigError(
            f"{folder}/config.yaml names no algorithm.name, expected a run's configuration; "
            "name a folder that 'targetprop train' made."
        )
    notes, rows, damaged = [], [], 0
    try:
        for _, row in files.rows(folder / "metrics.jsonl"):
            if is_row(row):
                rows.append(row)
            else:
                damaged += 1
    except FileNotFoundError:
        notes.append("It has no metrics.jsonl yet.")
    if damaged:
        notes.append(f"{damaged} damaged row{'s' * (damaged > 1)} of metrics.jsonl passed over.")
    result = read_result(folder)
    if result is None and (folder / "result.json").exists():
        notes.append("result.json is damaged; 'targetprop resume' writes it anew.")
    try:
        environment = files.read_json(folder / "environment.json")
    except (FileNotFoundError, FileError):
        environment = {}
        notes.append("environment.json is missing or damaged.")
    return Run(folder, settings, rows, result, environment, notes)


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs by configuration, in the order in which each comes first.

    A second run of the same seed is no further sample of a mean: it starts a group of its own.
    """
    groups: dict[Any, list[Run]] = {}
    seen: dict[Any, int] = {}
    for run in runs:
        key = json.dumps({k: v for k, v in run.settings.items() if k not in ASIDE}, sort_keys=True)
        again = (key, json.dumps(run.settings.get("seed")))
        seen[again] = seen.get(again, 0) + 1
        groups.setdefault((key, seen[again]), []).append(run)
    paths = [common(members) for members in groups.values()]
    labels = distinct(paths)
    return [Group(label, members) for label, members in zip(labels, groups.values(), strict=True)]


def common(runs: Sequence[Run]) -> Path:
    """The folder that names several runs: their own, or the deepest that holds them all."""
    paths = [run.folder.absolute() for run in runs]
    same = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0]
    alone = len(paths) == 1 and re.fullmatch(r"seed-\d+", same.name)
    return same.parent if alone else same


def distinct(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as it takes to tell them apart; numbered where they are equal."""
    found: list[str] = []
    for path in paths:
        others = [other for other in paths if other != path]
        length = 1
        while length < len(path.parts) and any(
            other.parts[-length:] == path.parts[-length:] for other in others
        ):
            length += 1
        label = "/".join(path.parts[-length:])
        times = sum(1 for before in paths[: len(found)] if before == path)
        found.append(f"{label} ({times + 1})" if times else label)
    return found


def command(run: Run) -> str:
    """A command that trains the run again: a preset and what differs from it, or the run's file."""
    values = {k: v for k, v in run.settings.items() if k != "seed"}
    source, changes = str(run.folder / "config.yaml"), []
    best = min(((name, beside(name, values)) for name in config.presets()), key=by_length)
    if len(best[1]) <= LONGEST and says(best[0], best[1], values):
        source, changes = best
    words = ["targetprop", "train", source]
    for key, value in [*changes, ("seed", run.settings.get("seed", 0))]:
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join([*words, "--out", f"again/{run.folder.name or 'run'}"])


def by_length(candidate: tuple[str, list[Any]]) -> int:
    """How many settings a command would name beside its preset."""
    return len(candidate[1])


def beside(preset: str, values: dict[str, Any]) -> list[tuple[str, Any]]:
    """The settings in which a configuration differs from a preset."""
    base = dict(config.flat(Config().to_dict()))
    theirs = config.presets()[preset]
    if values.get("network.name") != theirs.get("network.name", base["network.name"]):
        theirs = {k: v for k, v in theirs.items() if not k.startswith("network.")}
    base |= theirs
    return [(k, v) for k, v in values.items() if k not in base or base[k] != v]


def says(preset: str, changes: Sequence[tuple[str, Any]], values: dict[str, Any]) -> bool:
    """Whether a preset with changes is the configuration, data folder and seed apart."""
    try:
        made = dict(config.flat(config.load(preset, changes).to_dict()))
    except ConfigError:
        return False
    keys = {*made, *values} - set(ASIDE)
    return all(made.get(key) == values.get(key) for key in keys)
