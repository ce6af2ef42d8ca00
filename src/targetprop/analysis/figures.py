"""Pictures of runs: learning curves and the angle of every layer's update to the backprop gradient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Running mean over the last ``window`` values."""
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def draw_runs(runs: dict[str, list[Row]], path: Path) -> None:
    """Training loss, validation accuracy and, for each run that has them, the angles of its layers.

    Args:
        runs: the metric rows of every run by its label.
        path: of the PNG or PDF to write.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    angled = [label for label, rows in runs.items() if any(max(row.get("angle", {"": 0}).values()) > 1e-3 for row in rows)]
    figure = Figure(figsize=(4.6 * (2 + len(angled)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 + len(angled), squeeze=False)[0]
    for label, rows in runs.items():
        train = [row for row in rows if row["kind"] == "train"]
        window = max(1, len(train) // 40)
        axes[0].plot([row["step"] for row in train], smoothed([row["loss"] for row in train], window), label=label)
        scored = [row for row in rows if row["kind"] == "validation"]
        shown = scored or train
        values = [100 * row["accuracy"] for row in shown]
        axes[1].plot([row["step"] for row in shown], values if scored else smoothed(values, window), label=label, marker=".")
    axes[0].set(title="training loss", xlabel="step", ylabel="loss")
    validated = any(row["kind"] == "validation" for rows in runs.values() for row in rows)
    axes[1].set(title="accuracy", xlabel="step", ylabel=f"{'validation' if validated else 'training'} accuracy (%)")
    for ax, label in zip(axes[2:], angled, strict=True):
        measured = [row for row in runs[label] if row.get("angle")]
        for name in measured[0]["angle"]:
            ax.plot([row["step"] for row in measured], [row["angle"][name] for row in measured], label=name, marker=".")
        ax.set(title=f"{label}: update vs backprop gradient", xlabel="step", ylabel="angle (degrees)")
        ax.set_ylim(bottom=0)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)
