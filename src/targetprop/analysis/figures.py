"""Pictures of runs: learning curves, and angles of the layers' updates to the backprop gradient."""

from __future__ import annotations

import itertools
import math
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
        top: the upper end then; None for a little above the curves.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    xscale: str = "linear"
    yscale: str = "linear"
    floor: float | None = None
    top: float | None = None


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
            ax.plot(
                line.x, line.y, label=line.label, **{"color": colours[line.label], **line.style}
            )
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
            top = 1.1 * max(max(line.y) for line in panel.lines) or 1
            ax.set_ylim(panel.floor, top if panel.top is None else panel.top)
        ax.grid(alpha=0.3)
    if len(shown) > 1 and set(labels) == {line.label for line in shown[0].lines}:
        figure.legend(
            *flat[0].get_legend_handles_labels(), loc="outside right center", fontsize="small"
        )
    else:
        for ax, panel in zip(flat, shown, strict=False):
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            ax.legend(fontsize="small", **(beside if len(panel.lines) > 4 else {}))
    for path in paths:
        figure.savefig(path, dpi=120)


def draw_runs(runs: dict[str, list[Row]], path: Path) -> None:
    """Training loss, accuracy and angles of the updates to the backprop gradient.

    The angles are shown layer by layer, a panel a run; of more than two runs the largest of each.

    Args:
        runs: the metric rows of every run by its label.
        path: of the PNG or PDF to write.
    """
    styles = itertools.cycle(("-", "--", ":", "-."))  # so that equal curves are seen to be two
    losses, accuracies, angles = [], [], {}
    validated = any(row["kind"] == "validation" for rows in runs.values() for row in rows)
    for label, rows in runs.items():
        style = {"linestyle": next(styles)}
        train = [row for row in rows if row["kind"] == "train"]
        steps, window = [row["step"] for row in train], max(1, len(train) // 40)
        losses.append(Line(label, steps, smoothed([r["loss"] for r in train], window), style=style))
        scored = [row for row in rows if row["kind"] == "validation"]
        right = [100 * row["accuracy"] for row in scored or train]
        at = [row["step"] for row in scored or train]
        shown = right if scored else smoothed(right, window)
        accuracies.append(Line(label, at, shown, style={**style, "marker": "."}))
        measured = [row for row in rows if row.get("angle")]
        if any(max(row["angle"].values()) > 0 for row in measured):  # backprop's are 0
            angles[label] = (measured, style)
    name = f"{'validation' if validated else 'training'} accuracy (%)"
    drawn = [
        Panel("training loss", "step", "loss", losses, yscale=scale_of(losses)),
        Panel("accuracy", "step", name, accuracies),
    ]
    far = "degrees"
    if len(angles) > 2:
        worst = [
            Line(
                label, [r["step"] for r in rows], [max(r["angle"].values()) for r in rows], None, s
            )
            for label, (rows, s) in angles.items()
        ]
        title = "largest angle of all updates\nto the backprop gradient"
        drawn.append(Panel(title, "step", far, worst, yscale=scale_of(worst)))
    else:
        layers = {label: by_layer(rows) for label, (rows, _) in angles.items()}
        every = [line for lines in layers.values() for line in lines]
        scale, seen = scale_of(every), [y for line in every for y in line.y if 0 < y < math.inf]
        ends = (min(seen) / 2, 2 * max(seen)) if scale == "log" else (0, 1.1 * max(seen, default=1))
        for label, lines in layers.items():
            title = f"{label}: angle of each update\nto the backprop gradient"
            drawn.append(Panel(title, "step", far, lines, "linear", scale, *ends))
    draw_panels(drawn, [path], columns=2 if len(drawn) == 4 else 3)


def by_layer(measured: Sequence[Row]) -> list[Line]:
    """A curve per layer; in deep networks, colours tell the depth and only the ends are named."""
    from matplotlib import colormaps

    names, last = list(measured[0]["angle"]), len(measured[0]["angle"]) - 1
    at, lines = [row["step"] for row in measured], []
    for index, name in enumerate(names):
        values = [row["angle"].get(name, math.nan) for row in measured]
        style: dict[str, Any] = {"marker": "."}
        label = name.removesuffix(".weight")
        if last > 8:
            label = "input" if index == 0 else "output" if index == last else f"_{label}"
            style["color"] = colormaps["viridis"](index / last)
        lines.append(Line(label, at, values, style=style))
    return lines


def scale_of(lines: Sequence[Line]) -> str:
    """Logarithmic where ordinates differ by more than a factor of 50."""
    values = [y for line in lines for y in line.y if 0 < y < math.inf]
    return "log" if values and max(values) > 50 * min(values) else "linear"


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
