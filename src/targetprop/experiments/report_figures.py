"""The figures of a report as plain data: what plotly draws, from the rows of runs.

A figure is a dictionary with ``data`` and ``layout`` in plotly's schema. Colours are left to the
page, which knows whether it is light or dark: a trace's ``meta`` says which it wants.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from targetprop.experiments.report_runs import Group, Run, number

POINTS = 2000
"""Of a curve at most; with more, every k-th row is shown."""

LEAST_ANGLE = 1e-3
"""Degrees; what is smaller has the colour of this."""

Figure = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A quantity over training, of one configuration.

    Attributes:
        steps: where at least one seed has a row.
        seconds: mean time in steps until then; None where no row says it.
        mean: over the seeds that have the row.
        std: sample standard deviation over them; None for a single one.
        seeds: how many there are.

    """

    steps: list[int]
    seconds: list[float | None]
    mean: list[float]
    std: list[float | None]
    seeds: list[int]


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def thinned(steps: Sequence[int]) -> list[int]:
    """Every k-th step and the last, ``POINTS`` or little more."""
    every = max(1, -(-len(steps) // POINTS))
    return [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1]


def curve(runs: Sequence[Run], kind: str, key: str, scale: float = 1.0) -> Curve:
    """The mean of ``key`` over runs at every step with rows of ``kind``; its last row counts."""
    of_runs = [
        {
            row["step"]: row
            for row in run.rows
            if row["kind"] == kind and number(row[key]) is not None
        }
        for run in runs
    ]
    found = Curve([], [], [], [], [])
    for step in thinned(sorted({step for rows in of_runs for step in rows})):
        here = [rows[step] for rows in of_runs if step in rows]
        mean, std = mean_std([scale * float(row[key]) for row in here])
        times = [s for row in here if (s := number(row.get("seconds"))) is not None]
        found.steps.append(step)
        found.seconds.append(mean_std(times)[0] if times else None)
        found.mean.append(mean)
        found.std.append(std)
        found.seeds.append(len(here))
    return found


def lines(label: str, slot: int, found: Curve, marked: bool, unit: str) -> list[dict[str, Any]]:
    """The traces of a curve: its band of mean ± standard deviation, if any, then its line."""
    name = html.escape(label)
    places = [i for i, std in enumerate(found.std) if std is not None]
    traces = []
    for sign, fill in ((-1, None), (1, "tonexty")):
        if places:
            edge = [found.mean[i] + sign * (found.std[i] or 0.0) for i in places]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "legendgroup": str(slot),
                    "x": [found.steps[i] for i in places],
                    "y": edge,
                    "line": {"width": 0},
                    **({"fill": fill} if fill else {}),
                    "hoverinfo": "skip",
                    "meta": {
                        "role": "band",
                        "slot": slot,
                        "step": [found.steps[i] for i in places],
                        "seconds": [found.seconds[i] for i in places],
                    },
                }
            )
    text = [
        "" if std is None else f" ± {std:.2g}{unit}, {seeds} seeds"
        for std, seeds in zip(found.std, found.seeds, strict=True)
    ]
    line = {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "name": name,
        "legendgroup": str(slot),
        "x": found.steps,
        "y": found.mean,
        "text": text,
        "hovertemplate": f"%{{y:.4g}}{unit}%{{text}}",
        "meta": {"role": "line", "slot": slot, "step": found.steps, "seconds": found.seconds},
    }
    return [*traces, line]


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Axes with their titles and little else."""
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "automargin": True}}
    return {**axes, "hovermode": "closest", "showlegend": False, **more}


def has(groups: Sequence[Group], kind: str) -> bool:
    """Whether any run has rows of a kind."""
    return any(row["kind"] == kind for g in groups for run in g.runs for row in run.rows)


def loss_figure(groups: Sequence[Group]) -> Figure:
    """Training loss of logged batches over steps; the page can turn steps into seconds."""
    data = [
        trace
        for slot, group in enumerate(groups)
        for trace in lines(group.label, slot, curve(group.runs, "train", "loss"), False, "")
    ]
    return {"data": data, "layout": layout("step", "loss", hovermode="x unified")}


def accuracy_figure(groups: Sequence[Group]) -> Figure:
    """Validation accuracy in %; of training batches where nothing was held out."""
    kind = "validation" if has(groups, "validation") else "train"
    data = [
        trace
        for slot, group in enumerate(groups)
        for trace in lines(
            group.label, slot, curve(group.runs, kind, "accuracy", 100.0), kind != "train", " %"
        )
    ]
    named = f"{'validation' if kind != 'train' else 'training'} accuracy (%)"
    return {"data": data, "layout": layout("step", named, hovermode="x unified")}


@dataclass(frozen=True)
class Layers:
    """A quantity per layer over training: ``values[layer][step]``, means over seeds."""

    names: list[str]
    steps: list[int]
    values: list[list[float | None]]


def layers(runs: Sequence[Run], key: str) -> Layers:
    """The mean over runs of what rows hold for every layer under ``key``; None where nothing."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        own: dict[tuple[str, int], float] = {}
        for row in run.rows:
            held = row.get(key)
            for name, value in held.items() if isinstance(held, dict) else ():
                if (finite := number(value)) is not None:
                    own[name, row["step"]] = finite  # a step's last row counts
        for (name, step), value in own.items():
            found.setdefault(name, {}).setdefault(step, []).append(value)
    steps = thinned(sorted({step for of_layer in found.values() for step in of_layer}))
    values = [
        [mean_std(at[step])[0] if step in at else None for step in steps] for at in found.values()
    ]
    return Layers(list(found), steps, values)


def angle_figure(runs: Sequence[Run]) -> Figure | None:
    """A heat map, layer × step, of the angle to the backprop gradient; None if all are nothing.

    Colours go by the angle's logarithm from 0.001° to 90°, alike in all maps; ``customdata`` holds
    the degrees themselves.
    """
    found = layers(runs, "angle")
    if all(a is None or a < LEAST_ANGLE for row in found.values for a in row):
        return None
    shade = [
        [None if a is None else math.log10(max(a, LEAST_ANGLE)) for a in row]
        for row in found.values
    ]
    ticks = [0.001, 0.01, 0.1, 1, 10, 90]
    trace = {
        "type": "heatmap",
        "x": [str(step) for step in found.steps],
        "y": [html.escape(name) for name in found.names],
        "z": shade,
        "customdata": found.values,
        "zmin": math.log10(LEAST_ANGLE),
        "zmax": math.log10(90),
        "colorscale": "Cividis",
        "hovertemplate": "%{y}, step %{x}: %{customdata:.3g}°<extra></extra>",
        "colorbar": {
            "tickvals": [math.log10(t) for t in ticks],
            "ticktext": [f"{t:g}°" for t in ticks],
            "thickness": 12,
            "outlinewidth": 0,
        },
        "meta": {"role": "map"},
    }
    made = layout("step", "layer")
    made["xaxis"] |= {"type": "category", "nticks": 8, "tickangle": 0}
    made["yaxis"] |= {"type": "category"}
    return {"data": [trace], "layout": made}


def layer_figure(runs: Sequence[Run], key: str) -> Figure | None:
    """Lines of ``mismatch`` or ``iterations``, one a layer, over steps; None if there are none."""
    found = layers(runs, key)
    if not found.names:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "lines" if key == "mismatch" else "lines+markers",
            "name": html.escape(name),
            "legendgroup": str(i),
            "x": found.steps,
            "y": values,
            "hovertemplate": "%{y:.3g}",
            "meta": {"role": "layer", "slot": i, "depth": i / max(1, len(found.names) - 1)},
        }
        for i, (name, values) in enumerate(zip(found.names, found.values, strict=True))
    ]
    made = layout("step", "‖A_ω − A_θ‖ / ‖A_θ‖" if key == "mismatch" else "iterations in the step")
    positive = any(v for row in found.values for v in row if v is not None and v > 0)
    if key == "mismatch" and positive:
        made["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    else:
        made["yaxis"] |= {"rangemode": "tozero"}
    made["hovermode"] = "x unified" if len(found.names) <= 8 else "closest"
    return {"data": data, "layout": made}


def outcome(run: Run) -> tuple[float, float, float] | None:
    """Seconds per step, seconds in all, test accuracy in % of a run; None if it has not ended."""
    if run.result is None:
        return None
    seconds, steps = number(run.result["seconds_per_step"]), number(run.result["steps"])
    accuracy = number(run.result["test"]["accuracy"])
    if seconds is None or steps is None or accuracy is None:
        return None
    return seconds, seconds * steps, 100 * accuracy


def cost_figure(groups: Sequence[Group]) -> Figure | None:
    """Test accuracy against seconds, of finished runs and of means over seeds; None without any."""
    data = []
    for slot, group in enumerate(groups):
        ended = [(run, scored) for run in group.runs if (scored := outcome(run)) is not None]
        if not ended:
            continue
        each, total, scores = ([scored[i] for _, scored in ended] for i in range(3))
        common = {"type": "scatter", "name": html.escape(group.label), "legendgroup": str(slot)}
        data.append(
            {
                **common,
                "mode": "markers",
                "x": each,
                "y": scores,
                "text": [html.escape(f"seed {run.settings.get('seed')}") for run, _ in ended],
                "hovertemplate": "%{text}: %{y:.2f} %, %{x:.3g} s",
                "meta": {"role": "run", "slot": slot, "step": each, "total": total},
            }
        )
        if len(ended) > 1:
            (x, _), (whole, _), (y, high) = map(mean_std, (each, total, scores))
            data.append(
                {
                    **common,
                    "mode": "markers",
                    "x": [x],
                    "y": [y],
                    "error_y": {"type": "data", "array": [high], "thickness": 1.5},
                    "hovertemplate": f"mean of {len(ended)} seeds: %{{y:.2f}} ± {high:.2f} %, "
                    f"%{{x:.3g}} s",
                    "meta": {"role": "mean", "slot": slot, "step": [x], "total": [whole]},
                }
            )
    return (
        {"data": data, "layout": layout("seconds per step", "test accuracy (%)")} if data else None
    )
