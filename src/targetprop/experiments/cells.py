"""Parts of an experiment, computed once each and kept, a folder a cell; interrupted, it goes on."""

from __future__ import annotations

import csv
import io
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from targetprop import data
from targetprop.analysis.tables import markdown
from targetprop.data import Batches
from targetprop.laboratory import networks
from targetprop.laboratory.pairing import Network
from targetprop.training import loop
from targetprop.training.checkpoint import write_text
from targetprop.training.config import ConfigError
from targetprop.training.device import layout, pick_device
from targetprop.training.files import FileError, read_json
from targetprop.training.lock import locked
from targetprop.training.logging import environment, is_real

Result = dict[str, Any]
Tell = Callable[[str], None]
"""Is told in a few words what is computed now."""


@dataclass(frozen=True)
class Place:
    """Where and how an experiment is made.

    Attributes:
        folder: of its cells and results.
        scale: "smoke", "cpu" or "paper".
        seeds: how many; None for the usual number.
        data_dir: where data sets lie.
        tell: of progress.
        watch: is shown the steps of runs.
        deadline: time.monotonic() after which no cell is begun, and a run is saved, to go on when
            the command is repeated.
        only: the parts of ``evidence`` to make; empty for all.
    """

    folder: Path
    scale: str
    seeds: int | None = None
    data_dir: str | None = None
    tell: Tell = lambda text: None
    watch: loop.Tell = lambda session, loss: None
    deadline: float = float("inf")
    only: Sequence[str] = ()

    def choose(self, own: Sequence[int]) -> list[int]:
        """The seeds: the experiment's own, as many as asked for (two to smoke), then on by ones."""
        usual = min(2, len(own)) if self.scale == "smoke" else len(own)
        count = usual if self.seeds is None else self.seeds
        return [*own[:count], *(own[-1] + 1 + i for i in range(count - len(own)))]


def cell(
    place: Place,
    name: str,
    settings: Result,
    compute: Callable[[Path], Result],
    device: str = "cpu",
) -> Result:
    """The result in the cell's folder, computed if it is not there yet.

    Args:
        place: of the experiment.
        name: of the cell, a relative path.
        settings: what the result depends on, as plain values; a cell with others is refused.
        compute: (folder) ↦ result, plain values; may keep checkpoints there.
        device: that it computes on, as a run is told.

    Raises:
        ConfigError: the folder holds a result of other settings.
        Interrupted: the deadline passed; what was computed is kept.
    """
    folder = place.folder / "cells" / name
    path, settings = folder / "cell.json", json.loads(json.dumps(settings))
    if path.exists():
        return kept_result(path, settings)
    place.tell(name)
    with locked(folder):
        if path.exists():  # by another process, since we looked
            return kept_result(path, settings)
        return computed(place, folder, settings, compute, device)


def kept_result(path: Path, settings: Result) -> Result:
    """The result in a cell's file.

    Raises:
        ConfigError: of other settings.
        FileError: the file is none of a cell.
    """
    kept = read_cell(path)
    held = kept["settings"]
    if held != settings:
        other = [key for key in {**settings, **held} if settings.get(key) != held.get(key)]
        raise ConfigError(
            f"{path.parent} holds a result with other settings ({', '.join(other)}); "
            "give another --out."
        )
    return kept["result"]


def read_cell(path: Path) -> Result:
    """What a cell's file holds.

    Raises:
        FileError: not settings, result, environment and seconds.
    """
    kept = read_json(path)
    parts = [kept.get(key) for key in ("settings", "result", "environment")]
    if not all(isinstance(part, dict) for part in parts) or not is_real(kept.get("seconds")):
        raise FileError(f"{path}: is no result of a cell; move it away, and it is made anew.")
    return kept


def computed(
    place: Place, folder: Path, settings: Result, compute: Callable[[Path], Result], device: str
) -> Result:
    """The result, made now and kept.

    Raises:
        Interrupted: the deadline passed.
    """
    path, began = folder / "cell.json", time.perf_counter()
    result = compute(folder)
    record = environment(pick_device(device), settings.get("seed", 0))
    kept = {
        "settings": settings,
        "environment": record,
        "seconds": time.perf_counter() - began,
        "result": result,
    }
    write_text(path, json.dumps(kept, indent=1) + "\n")
    if time.monotonic() > place.deadline:
        raise loop.Interrupted(f"stopped behind {folder}.", signal.SIGALRM)
    return json.loads(json.dumps(result))


def seed_by_seed(
    place: Place,
    seeds: Sequence[int],
    settings: Result,
    labels: Iterable[str],
    compute: Callable[[str, int, Path], Result],
) -> Iterator[tuple[dict[str, list[Result]], Sequence[int]]]:
    """Cells ``LABEL/seed-SEED``; after each seed, the results of all labels so far and their seeds.

    Args:
        place: of the experiment.
        seeds: in this order.
        settings: what all results depend on, beside label and seed.
        labels: of the cells.
        compute: (label, seed, folder) ↦ result.
    """
    results: dict[str, list[Result]] = {label: [] for label in labels}
    for done, seed in enumerate(seeds, 1):
        for label, found in results.items():
            name = f"{slug(label)}/seed-{seed}"
            found.append(
                cell(place, name, {**settings, "seed": seed}, partial(compute, label, seed))
            )
        yield results, seeds[:done]


def lenet_batch(
    data_name: str, data_dir: str | None, seed: int, bias: bool, kind: str, augment: str
) -> tuple[Network, Any]:
    """A LeNet with weights of ``seed`` and the first shuffled batch of 256 of that seed, (x, y)."""
    dataset = data.load(data_name, data_dir)
    torch.manual_seed(seed)
    net: Any = networks.lenet(dataset.in_shape, dataset.classes, bias=bias, feedback=kind)
    form = layout(net, "auto")
    net = net.to(memory_format=form)
    batches = Batches(
        dataset.train,
        dataset.mean,
        dataset.std,
        256,
        augment=augment,
        seed=seed,
        memory_format=form,
    )
    return net, next(batches.epoch(0))


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return "".join(c for c in label.replace(" ", "-") if c not in ",'=")


def listed(seeds: Sequence[int]) -> str:
    """How many seeds, and which."""
    return (
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
        if len(seeds) > 1
        else f"seed {seeds[0]} only"
    )


def mean_and_std(values: Iterable[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Over equally long rows, entry by entry; the deviation of a single row is 0."""
    columns = list(zip(*values, strict=True))
    return [statistics.mean(c) for c in columns], [
        statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns
    ]


def spread(mean: float, std: float, count: int) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    return f"{mean:.2f} ± {std:.2f}" if count > 1 else f"{mean:.2f}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the keys of the first as columns; numbers to six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    write_text(path, text.getvalue())


def write_markdown(
    place: Place,
    name: str,
    title: str,
    about: str,
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
):
    """``name.md`` in the experiment's folder: what was done, how it was computed, and a table."""
    text = f"# {title}\n\n{about}\n\n{origin(place, name)}\n\n{markdown(headings, lines)}"
    write_text(place.folder / f"{name}.md", text)


def origin(place: Place, name: str) -> str:
    """The command that makes the results, and where, when and from which source the cells came."""
    seeds = "" if place.seeds is None else f" --seeds {place.seeds}"
    seeds += f" --only {' '.join(place.only)}" if place.only else ""
    command = f"    targetprop reproduce {name} --scale {place.scale}{seeds} --data-dir DATA"
    kept = [read_cell(path) for path in sorted((place.folder / "cells").rglob("cell.json"))]
    if not kept:
        return f"{command}\n\nNo cell is finished yet."
    records = [one["environment"] for one in kept]

    def each(key: str) -> str:
        return ", ".join(sorted({str(record.get(key, "unknown")) for record in records}))

    dates = sorted({str(record.get("date", "unknown"))[:10] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    hours = sum(one["seconds"] for one in kept) / 3600
    return (
        f"{command}\n\n"
        f"{len(kept)} cells, {hours:.2f} hours in all, {when}, commit {each('commit')}, "
        f"torch {each('torch')}, {each('device')}, {each('threads')} threads."
    )
