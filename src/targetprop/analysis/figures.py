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


def panels(count: int, rows: int = 1, width: float = 4.6) -> tuple[Any, Any]:
    """A figure, drawn without a display, and its rows of ``count`` axes each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, count, squeeze=False)


def draw_cost(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Cost of a step over backprop's against the angle reached, one panel per network.

    Args:
        points: per panel title, rows with "contender", "ratio", "angle_max" and "angle_mean" (degrees; None for backprop).
        path: of the PNG or PDF to write.

    """
    figure, axes = panels(len(points), width=7.0)
    for ax, (title, rows) in zip(axes[0], points.items(), strict=True):
        ax.axvline(1, color="black", lw=0.8, ls=":", label="backprop")
        measured = [row for row in rows if row["angle_max"]]
        for i, row in enumerate(measured):
            most, mean = row["angle_max"], max(row["angle_mean"], 1e-3)
            marker = "osD^v"[i // 10 % 5]
            ax.errorbar(
                row["ratio"], mean, [[0], [most - mean]], marker=marker, capsize=3, color=f"C{i}", label=row["contender"]
            )
        ax.set(title=title, xlabel="time per step / backprop's", ylabel="angle to backprop, mean and largest (degrees)")
        ax.set_yscale("log")
        if any(row["ratio"] > 5 for row in measured):
            ax.set_xscale("log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)


def draw_scaling(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and peak memory of a step along each axis, backprop's and L-DRL's.

    Args:
        results: per axis, points with "value" and "rows", the rows of backprop and L-DRL with "ms" and "memory".
        path: of the PNG or PDF to write.

    """
    measured = {row["memory"] is not None for points in results.values() for point in points for row in point["rows"]}
    shown = (("ms", "ms per step"), ("memory", "peak memory (MiB)"))[: 2 if measured == {True} else 1]
    figure, axes = panels(len(results), len(shown))
    for column, (axis, points) in enumerate(results.items()):
        for row, (key, label) in enumerate(shown):
            ax = axes[row][column]
            for i, name in enumerate(("backprop", "L-DRL")):
                ax.plot([p["value"] for p in points], [p["rows"][i][key] for p in points], marker="o", label=name)
            ax.set(xlabel=axis, ylabel=label, xscale="log", yscale="log")
            ax.grid(alpha=0.3, which="both")
            ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_runs(runs: dict[str, list[Row]], path: Path) -> None:
    """Training loss, validation accuracy and, for each run that has them, the angles of its layers.

    Args:
        runs: the metric rows of every run by its label.
        path: of the PNG or PDF to write.

    """
    angled = [label for label, rows in runs.items() if any(max(row.get("angle", {"": 0}).values()) > 1e-3 for row in rows)]
    figure, (axes,) = panels(2 + len(angled))
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
