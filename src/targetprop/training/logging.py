"""A run's metrics, one JSON object a line, and its environment."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch

import targetprop
from targetprop.training import files
from targetprop.training.checkpoint import write_atomically
from targetprop.training.curves import Curves, Row
from targetprop.training.files import FileError


def as_json(values: dict[str, Any]) -> str:
    """Indented JSON, with a newline at its end."""
    return json.dumps(values, indent=2) + "\n"


def is_row(row: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a line of a metrics file is one of ours."""
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return False
    step, scores = row.get("step"), [row.get(key) for key in ("loss", "accuracy")]
    if type(step) is not int or abs(step) > 2**53 or not all(map(is_number, scores)):
        return False
    if not is_real(row.get("seconds", 0.0)):
        return False
    by_layer = [row[key] for key in ("angle", "mismatch", "iterations") if key in row]
    return all(isinstance(found, dict) for found in by_layer) and all(
        name.isprintable() and is_number(value)
        for found in by_layer
        for name, value in found.items()
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not a truth."""
    return type(value) in (int, float)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number, and not a truth."""
    return is_number(value) and math.isfinite(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; lines that are none, such as one torn by a kill, are left out."""
    if not path.exists():
        return []
    return [row for _, row in files.rows(path) if is_row(row)]


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run wrote at its end; None where it has not ended, or its file is damaged."""
    try:
        found = files.read_json(folder / "result.json")
        steps, accuracy = found["steps"], found["test"]["accuracy"]
        numbers = (steps, found["seconds_per_step"], accuracy)
    except (FileNotFoundError, FileError, KeyError, TypeError):
        return None
    fine = all(map(is_real, numbers)) and type(steps) is int and steps > 0 <= accuracy <= 1
    return found if fine and found["seconds_per_step"] > 0 else None


def is_before(row: dict[str, Any], step: int) -> bool:
    """Whether a row is older than the checkpoint of ``step``, whose own is computed anew."""
    return row["step"] < step or (row["step"] == step and row["kind"] == "validation")


class Metrics:
    """Appends rows to ``metrics.jsonl`` and draws their curves.

    Opened at a step, it first drops the rows of later steps, which a resumed run computes anew.
    """

    def __init__(
        self, folder: Path | None, step: int = 0, also: Callable[[Row], None] = lambda row: None
    ):
        """Open the metrics of a run folder at ``step``; without a folder nothing is written.

        ``also`` is given every row too, those that are there already first.
        """
        self._file: Any = None
        self._also = also
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        lines = files.rows(path) if step and path.exists() else ()
        kept = [line for line, row in lines if is_row(row) and is_before(row, step)]
        write_atomically(path, lambda file: file.writelines(kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed by close()
        self._curves = Curves(folder / "tensorboard", lambda: read_metrics(path))
        for row in read_metrics(path):
            also(row)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One row; nested dictionaries of numbers become one curve per entry."""
        if self._file is None:
            return
        row = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._curves.add(row)
        self._also(row)

    def close(self) -> None:
        """Flush both."""
        if self._file is not None:
            self._file.close()
            self._curves.close()


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """What a result depends on beside its configuration."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "commit": commit(),
        "targetprop": targetprop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


KNOWN = ("command", "commit", "date", "torch", "device", "threads")


def provenance(record: dict[str, Any]) -> str:
    """The command, commit, date and machine of a measurement, as Markdown."""
    known = {key: record.get(key, "unknown") for key in KNOWN}
    where = f"torch {known['torch']}, {known['device']}, {known['threads']} threads"
    return f"`{known['command']}`\n\nCommit {known['commit']}, {known['date']}, {where}.\n"


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this package's source tree, '+' if files differ from it; None if installed."""
    folder = Path(__file__).resolve().parent
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(folder), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()
        if not run("ls-files", str(Path(__file__).name)):
            return None
        return run("rev-parse", "--short=12", "HEAD") + (
            "+" if run("status", "--porcelain", "--", "..") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
