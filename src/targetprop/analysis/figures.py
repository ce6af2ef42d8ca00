"""Pictures of runs: learning curves, and angles of the layers' updates to the backprop gradient."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


def draw_runs(runs: dict[str, list[Row]], path: Path) -> None:
    """Training loss, validation accuracy and, for each run that has them, the angles of its layers.

    Args:
        runs: the metric rows of every run by its label.
        path: of the PNG or PDF to write.
    """
    angled = [
        label
        for label, rows in runs.items()
        if any(max(row.get("angle", {"": 0}).values()) > 0 for row in rows)  # backprop's are 0
    ]
    from matplotlib import colormaps

    figure, (axes,) = panels(2 + len(angled))
    viridis = colormaps["viridis"]  # of the layers of a deep network, from input to output
    styles = itertools.cycle(("-", "--", ":", "-."))  # so that equal curves are seen to be two
    for label, rows in runs.items():
        style = next(styles)
        train = [row for row in rows if row["kind"] == "train"]
        window = max(1, len(train) // 40)
        axes[0].plot(
            [row["step"] for row in train],
            smoothed([row["loss"] for row in train], window),
            style,
            label=label,
        )
        scored = [row for row in rows if row["kind"] == "validation"]
        shown = scored or train
        values = [100 * row["accuracy"] for row in shown]
        axes[1].plot(
            [row["step"] for row in shown],
            values if scored else smoothed(values, window),
            style,
            label=label,
            marker=".",
        )
    axes[0].set(title="training loss", xlabel="step", ylabel="loss")
    validated = any(row["kind"] == "validation" for rows in runs.values() for row in rows)
    axes[1].set(
        title="accuracy",
        xlabel="step",
        ylabel=f"{'validation' if validated else 'training'} accuracy (%)",
    )
    for ax, label in zip(axes[2:], angled, strict=True):
        measured = [row for row in runs[label] if row.get("angle")]
        names, last = list(measured[0]["angle"]), len(measured[0]["angle"]) - 1
        for index, (name, style) in enumerate(zip(names, styles, strict=False)):
            ends = "input" if index == 0 else "output" if index == last else "_"
            many = {"color": viridis(index / last), "label": ends} if last > 8 else {"label": name}
            ax.plot(
                [row["step"] for row in measured],
                [row["angle"][name] for row in measured],
                style,
                marker=".",
                **many,
            )
        ax.set(
            title=f"{label}: update vs backprop gradient", xlabel="step", ylabel="angle (degrees)"
        )
        ax.set_ylim(bottom=0)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)


@dataclass(frozen=True)
class Line:
    """One curve with its spread.

    Attributes:
        label: in the legend.
        x: abscissae.
        y: ordinates, means over seeds.
        spread: half the width of the band around them; None for none.
        style: further arguments of matplotlib's ``plot``.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    style: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """Curves over common axes.

    Attributes:
        title: above them.
        xlabel: with units.
        ylabel: with units.
        lines: the curves.
        xscale: "linear" or "log".
        yscale: likewise.
        floor: lower end of the ordinate, if it is fixed.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    xscale: str = "linear"
    yscale: str = "linear"
    floor: float | None = None


def draw_panels(shown: Sequence[Panel], paths: Sequence[Path], columns: int = 2) -> None:
    """Panels in rows of ``columns``, written to every path (PNG or PDF by its suffix).

    A label has one colour in all panels; one legend stands beside them if the first has all labels.
    """
    labels = list(dict.fromkeys(line.label for panel in shown for line in panel.lines))
    colours = {label: f"C{i % 10}" for i, label in enumerate(labels)}
    rows = -(-len(shown) // columns)
    figure, axes = panels(min(columns, len(shown)), rows, 5.6)
    flat = [ax for row in axes for ax in row]
    for ax in flat[len(shown) :]:
        ax.set_visible(False)
    for ax, panel in zip(flat, shown, strict=False):
        for line in panel.lines:
            ax.plot(line.x, line.y, color=colours[line.label], label=line.label, **line.style)
            if line.spread is not None and any(line.spread):
                low = [a - b for a, b in zip(line.y, line.spread, strict=True)]
                high = [a + b for a, b in zip(line.y, line.spread, strict=True)]
                ax.fill_between(line.x, low, high, color=colours[line.label], alpha=0.2, lw=0)
        ax.set(
            title=panel.title,
            xlabel=panel.xlabel,
            ylabel=panel.ylabel,
            xscale=panel.xscale,
            yscale=panel.yscale,
        )
        if panel.floor is not None:
            ax.set_ylim(bottom=panel.floor, top=1.1 * max(max(line.y) for line in panel.lines))
        ax.grid(alpha=0.3)
    if len(shown) > 1 and set(labels) == {line.label for line in shown[0].lines}:
        figure.legend(
            *flat[0].get_legend_handles_labels(), loc="outside right center", fontsize="small"
        )
    else:
        for ax in flat[: len(shown)]:
            ax.legend(fontsize="small")
    for path in paths:
        figure.savefig(path, dpi=120)


def draw_bars(
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[float]],
    published: Mapping[str, Sequence[float]],
    ylabel: str,
    paths: Sequence[Path],
) -> None:
    """Grouped bars with error bars; a black dash marks the published height of those that have one.

    Args:
        groups: their names, along the abscissa.
        bars: per label, a height per group.
        errors: per label, a standard deviation per group.
        published: per label, a height per group.
        ylabel: with units.
        paths: of the PNG or PDF files to write.
    """
    figure, ((ax,),) = panels(1, width=3 + 2.4 * len(groups))
    width = 0.85 / len(bars)
    for i, (label, heights) in enumerate(bars.items()):
        places = [g + (i - (len(bars) - 1) / 2) * width for g in range(len(groups))]
        hatch = "//" if i >= 10 else None
        ax.bar(
            places,
            heights,
            width,
            yerr=errors[label],
            capsize=2,
            label=label,
            color=f"C{i % 10}",
            hatch=hatch,
        )
        if label in published:
            ax.hlines(
                published[label],
                [p - width / 2 for p in places],
                [p + width / 2 for p in places],
                color="black",
                lw=2,
            )
    if published:
        ax.plot([], [], color="black", lw=2, label="published")
    ax.set_xticks(range(len(groups)), groups)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3, axis="y")
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for path in paths:
        figure.savefig(path, dpi=120)
