"""Pictures of costs: a step's time against the angle that it buys, and how cost scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from targetprop.analysis.figures import panels


def draw_cost(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Cost of a step over backprop's against the angle reached, one panel per network.

    Args:
        points: by title, each "contender", "ratio", "angle_max", "angle_mean" (°, backprop's None).
        path: of the PNG or PDF to write.
    """
    figure, axes = panels(len(points), width=7.0)
    for ax, (title, rows) in zip(axes[0], points.items(), strict=True):
        ax.axvline(1, color="black", lw=0.8, ls=":", label="backprop")
        measured = [row for row in rows if row["angle_max"]]
        for i, row in enumerate(measured):
            mean = max(row["angle_mean"], 1e-6)  # a logarithmic axis has no 0
            most = max(row["angle_max"], mean)
            marker = "osD^v"[i // 10 % 5]
            ax.errorbar(
                row["ratio"],
                mean,
                [[0], [most - mean]],
                marker=marker,
                capsize=3,
                color=f"C{i}",
                label=row["contender"],
            )
        ax.set(
            title=title,
            xlabel="time per step / backprop's",
            ylabel="angle to backprop (°): mean, largest",
        )
        ax.set_yscale("log")
        if any(row["ratio"] > 5 for row in measured):
            ax.set_xscale("log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)


def draw_scaling(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and peak memory of a step along each axis, backprop's and L-DRL's.

    Args:
        results: per axis, points with "value" and "rows", backprop's and L-DRL's "ms" and "memory".
        path: of the PNG or PDF to write.
    """
    from matplotlib.ticker import LogLocator

    measured = {
        row["memory"] is not None
        for points in results.values()
        for point in points
        for row in point["rows"]
    }
    shown = (("ms", "ms per step"), ("memory", "peak memory (MiB)"))[
        : 2 if measured == {True} else 1
    ]
    figure, axes = panels(len(results), len(shown))
    for column, (axis, points) in enumerate(results.items()):
        for row, (key, label) in enumerate(shown):
            ax = axes[row][column]
            for i, name in enumerate(("backprop", "L-DRL")):
                ax.plot(
                    [p["value"] for p in points],
                    [p["rows"][i][key] for p in points],
                    marker="o",
                    label=name,
                )
            ax.set(xlabel=axis, ylabel=label, xscale="log", yscale="log")
            ax.minorticks_off()
            ax.set_xticks([p["value"] for p in points], [f"{p['value']:g}" for p in points])
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.grid(alpha=0.3, which="both")
            ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)
