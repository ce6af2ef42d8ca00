"""The figures of a report that show layers over training: angles, mismatches, iterations."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from targetprop.report.figures import Figure, layout, mean_std, thinned
from targetprop.report.runs import Run, number

FAR = 5.0
"""Degrees above which every angle of a map is one of a rule that is not near the gradient."""

LEAST_ANGLE = 1e-3
"""Degrees; what is smaller has the colour of this."""


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

    Colours go by the angle's logarithm from 0.001° to 90°; of a rule that never comes within 5° of
    the gradient, by the angle itself up to 120°. ``customdata`` holds the degrees themselves.
    """
    found = layers(runs, "angle")
    if all(a is None or a < LEAST_ANGLE for row in found.values for a in row):
        return None
    measured = [a for row in found.values for a in row if a is not None and a >= LEAST_ANGLE]
    near = min(measured) < FAR

    def shade(angle: float) -> float:
        return math.log10(max(angle, LEAST_ANGLE)) if near else angle

    ticks = [0.001, 0.01, 0.1, 1, 10] if near else [0, 30, 60, 90, 120]
    trace = {
        "type": "heatmap",
        "x": [str(step) for step in found.steps],
        "y": [html.escape(name) for name in found.names],
        "z": [[None if a is None else shade(a) for a in row] for row in found.values],
        "customdata": found.values,
        "zmin": shade(0),
        "zmax": shade(90 if near else 120),
        "colorscale": "Cividis",
        "hovertemplate": "%{y}, step %{x}: %{customdata:.3g}°<extra></extra>",
        "colorbar": {
            "tickvals": [shade(t) for t in ticks],
            "ticktext": [f"{t:g}°" for t in ticks],
            "orientation": "h",
            "tickangle": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "thickness": 12,
            "ypad": 6,
            "outlinewidth": 0,
        },
        "meta": {"role": "map"},
    }
    made = layout("step", "")
    made["xaxis"] |= {"type": "category", "nticks": 8, "tickangle": 0}
    made["yaxis"] |= {"type": "category"}
    return {"data": [trace], "layout": made}


def fed_back(runs: Sequence[Run]) -> list[str]:
    """The layers with a mismatch or iterations, in the order of their colours."""
    return list(
        dict.fromkeys(n for key in ("iterations", "mismatch") for n in layers(runs, key).names)
    )


def layer_figure(runs: Sequence[Run], key: str) -> Figure | None:
    """Lines of ``mismatch`` or ``iterations``, one a layer, over steps; None if there are none."""
    found = layers(runs, key)
    if not found.names:
        return None
    order = fed_back(runs)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if key == "mismatch" else "markers",
            "name": html.escape(name),
            "legendgroup": str(order.index(name)),
            "x": found.steps,
            "y": values,
            "hovertemplate": "%{y:.3g}",
            "meta": {
                "role": "layer",
                "slot": order.index(name),
                "depth": order.index(name) / max(1, len(order) - 1),
            },
        }
        for name, values in zip(found.names, found.values, strict=True)
    ]
    ratio = "‖A<sub>ω</sub> − A<sub>θ</sub>‖ / ‖A<sub>θ</sub>‖"
    made = layout("step", ratio if key == "mismatch" else "iterations in the step")
    positive = any(v for row in found.values for v in row if v is not None and v > 0)
    if key == "mismatch" and positive:
        made["yaxis"] |= {"type": "log", "tickformat": ".2~e", "nticks": 6}
    else:
        most = max((v for row in found.values for v in row if v is not None), default=0)
        made["yaxis"] |= {
            "autorangeoptions": {"include": [0]},
            **({"dtick": 1} if most < 7 else {}),
        }
    made["hovermode"] = "x unified" if len(found.names) <= 8 else "closest"
    return {"data": data, "layout": made}
