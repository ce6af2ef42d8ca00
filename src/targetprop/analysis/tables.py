"""Runs and measurements side by side, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunSummary:
    """One run's line.

    Attributes:
        label: its name.
        algorithm: what trained it.
        test_accuracy: fraction, of the selected weights; None while it runs.
        seconds_per_step: mean over its steps, measurements apart.
        mean_angle: of all layers' updates to the backprop gradient, degrees; None if not measured.
        steps: done.
    """

    label: str
    algorithm: str
    test_accuracy: float | None
    seconds_per_step: float | None
    mean_angle: float | None
    steps: int

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        return (
            self.label,
            self.algorithm,
            "running" if self.test_accuracy is None else f"{100 * self.test_accuracy:.2f} %",
            "–" if self.seconds_per_step is None else f"{1000 * self.seconds_per_step:.1f} ms",
            "–" if self.mean_angle is None else f"{self.mean_angle:.2f}°",
            str(self.steps),
        )


HEADINGS = ("run", "algorithm", "test accuracy", "time per step", "mean angle to backprop", "steps")


def angle_summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The largest and the mean angle of all layers over a run's metric rows; None without any."""
    angles = [angle for row in rows for angle in row.get("angle", {}).values()]
    return {
        "angle_max": max(angles, default=None),
        "angle_mean": sum(angles) / len(angles) if angles else None,
    }


def summarise(
    label: str, config: dict[str, Any], rows: list[dict[str, Any]], result: dict[str, Any] | None
) -> RunSummary:
    """The line of a run from its configuration, metric rows and result."""
    name = config["algorithm"]["name"] + (f" ({s})" if (s := config["algorithm"]["solver"]) else "")
    train = [row for row in rows if row["kind"] == "train"]
    step = max((row["step"] for row in rows), default=0)
    timed = [row for row in train if "seconds" in row][-1:]
    rough = timed[0]["seconds"] / max(1, timed[0]["step"] + 1) if timed else None
    return RunSummary(
        label,
        name,
        result["test"]["accuracy"] if result else None,
        result["seconds_per_step"] if result else rough,
        angle_summary(rows)["angle_mean"],
        result["steps"] if result else step,
    )


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def number(value: float | None, digits: int, unit: str = "") -> str:
    """``value`` as text, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"
