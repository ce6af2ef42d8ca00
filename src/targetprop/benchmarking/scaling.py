"""How time and memory of a step grow with depth, width and batch, beside backprop's.

All on ``chain``, convolutions of equal width without pooling. A layer's probe takes fewer than
twice its d inputs in samples, of one position each, ever more rarely, whatever the depth: no term
of L-DRL grows faster than backprop's own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from targetprop.analysis.bench_figures import draw_scaling
from targetprop.analysis.tables import markdown, number
from targetprop.benchmarking import bench
from targetprop.benchmarking.bench import Tell
from targetprop.benchmarking.contenders import Setting
from targetprop.benchmarking.report import Row
from targetprop.data import Dataset
from targetprop.training.checkpoint import write_text
from targetprop.training.config import ConfigError
from targetprop.training.device import pick_device
from targetprop.training.logging import environment, provenance

DEPTH, WIDTH, BATCH = 8, 32, 64
AXES: dict[str, tuple[float, ...]] = {
    "depth": (5, 10, 20, 35, 50),
    "width": (16, 32, 64, 128, 256),
    "batch": (16, 32, 64, 128, 256),
}
"""Values of each axis; the others stand at 8 layers, width 32, batch 64."""


def point(axis: str, value: float, shared: Setting) -> Setting:
    """What is trained at one value of an axis."""
    count = int(value)
    depth, width = count if axis == "depth" else DEPTH, count if axis == "width" else WIDTH
    batch = count if axis == "batch" else BATCH
    return dataclasses.replace(shared, network="chain", channels=(width,) * depth, batch_size=batch)


def scaling(
    axes: Sequence[str],
    shared: Setting,
    dataset: Dataset,
    steps: int = 30,
    values: dict[str, tuple[float, ...]] = AXES,
    memory: bool = True,
    tell: Tell = lambda name, steps: None,
) -> dict[str, list[tuple[float, list[Row]]]]:
    """(value, rows of backprop and L-DRL) along each axis.

    Args:
        axes: some of ``AXES``.
        shared: device, precision and the like.
        dataset: the images.
        steps: timed steps of each contender at each value.
        values: of the axes.
        memory: measure peak memory too.
        tell: called with (axis and value, 1) after each point.

    Raises:
        ConfigError: an unknown axis.
    """
    for axis in axes:
        if axis not in AXES:
            raise ConfigError(f"unknown axis '{axis}'; choose among {', '.join(AXES)}.")
    found: dict[str, list[tuple[float, list[Row]]]] = {}
    for axis in axes:
        found[axis] = []
        for value in values[axis]:
            setting = point(axis, value, shared)
            found[axis].append(
                (value, bench.bench(("backprop", "ldrl"), setting, dataset, 3, steps, memory))
            )
            tell(f"{axis} {value:g}", 1)
    return found


def write(
    found: dict[str, list[tuple[float, list[Row]]]], shared: Setting, out: Path
) -> dict[str, Any]:
    """Write ``scaling.json``, ``scaling.md`` and ``scaling.png``; returns the first's content."""
    record = environment(pick_device(shared.device), 0)
    plain: dict[str, Any] = {
        axis: [
            {"value": value, "rows": [dataclasses.asdict(row) for row in rows]}
            for value, rows in points
        ]
        for axis, points in found.items()
    }
    whole = {"environment": record, "results": plain}
    write_text(out / "scaling.json", json.dumps(whole, indent=2) + "\n")
    text = provenance(record)
    headings = ("value", "backprop ms", "L-DRL ms", "×", "backprop MiB", "L-DRL MiB", "×")
    for axis, points in found.items():
        lines = []
        for value, (base, ours) in points:
            times = (number(base.ms, 1), number(ours.ms, 1), number(ours.ratio, 2))
            lines.append(
                (
                    f"{value:g}",
                    *times,
                    number(base.memory, 0),
                    number(ours.memory, 0),
                    number(ours.memory_ratio, 2),
                )
            )
        text += f"\n## {axis}\n\n" + markdown(headings, lines)
    write_text(out / "scaling.md", text)
    draw_scaling(plain, out / "scaling.png")
    return whole
