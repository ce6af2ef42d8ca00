"""TensorBoard's curves of a run, drawn from the rows of its metrics, which are what counts.

A resumed run's are drawn anew, all in one file: TensorBoard orders several files by the clock,
which may have been set back. So are curves that were deleted while the run goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """(kind/key or kind/key/name, number) of all that a row holds beside its step."""
    for key, value in row.items():
        for name, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, (int, float)) and key != "step":
                yield f"{row['kind']}/{key}/{name}".rstrip("/"), number


class Curves:
    """One curve per number of a row, named kind/key, against the step and the seconds trained."""

    def __init__(self, folder: Path, rows: Callable[[], Iterable[Row]]):
        """Draw ``rows()`` in ``folder``; again whenever its files are deleted."""
        self._folder, self._rows = folder, rows
        self._start()

    def _start(self) -> None:
        """Draw all rows in a new file."""
        from torch.utils.tensorboard import SummaryWriter

        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink(missing_ok=True)
        self._origin: float | None = None  # when the run had trained 0 seconds, by today's clock
        self._moment: float | None = None
        self._writer = SummaryWriter(str(self._folder))
        self._events = set(self._folder.glob("events.out.tfevents.*"))
        for row in self._rows():
            self._add(row)

    def _add(self, row: Row) -> None:
        seconds = row.get("seconds")
        if isinstance(seconds, (int, float)):
            if self._origin is None:
                self._origin = time.time() - seconds
            self._moment = self._origin + seconds
        for curve, number in numbers(row):
            if curve != f"{row['kind']}/seconds":
                self._writer.add_scalar(curve, number, row["step"], walltime=self._moment)

    def add(self, row: Row) -> None:
        """Draw a row that ``rows()`` gives from now on."""
        if not all(path.exists() for path in self._events):
            if self._folder.parent.is_dir():
                self._folder.mkdir(exist_ok=True)
                for path in self._events:  # else the old writer's thread fails
                    path.touch()
                self.close()
                self._start()  # which draws this row too
            return
        self._add(row)
        self._writer.flush()  # so that its thread is idle whenever they are deleted

    def close(self) -> None:
        """Write what is left."""
        with contextlib.suppress(OSError):  # of curves that were deleted; the rows are kept
            self._writer.close()
