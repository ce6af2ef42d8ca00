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

from targetprop.report.runs import Group, Run, number

POINTS = 2000
"""Of a curve at most; with more, every k-th row is shown."""

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
    if not found.steps:
        return []
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
                "meta": {
                    "role": "run",
                    "slot": slot,
                    "step": each,
                    "total": total,
                    "alone": len(ended) == 1,
                },
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
