"""The rows of a benchmark as a table, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targetprop.analysis.bench_figures import draw_cost
from targetprop.analysis.tables import markdown, number
from targetprop.benchmarking.contenders import Contender, Setting
from targetprop.training.checkpoint import write_text
from targetprop.training.device import pick_device
from targetprop.training.logging import environment, provenance


@dataclass(frozen=True)
class Row:
    """What one contender cost.

    Attributes:
        contender: its name.
        ms: median over turns of milliseconds per step.
        ms_low: lower quartile.
        ms_high: upper quartile.
        images_per_second: at the median.
        ratio: of medians, to "backprop", or without it to "plain"; None without both.
        memory: peak, MiB; None if not measured.
        memory_ratio: likewise.
        angle_max: degrees, the largest of all layers and measurements; None for backprop itself.
        angle_mean: likewise the mean.
        iterations: of the feedback solver per step, all layers together.
        steps: timed.
    """

    contender: str
    ms: float
    ms_low: float
    ms_high: float
    images_per_second: float
    ratio: float | None
    memory: float | None
    memory_ratio: float | None
    angle_max: float | None
    angle_mean: float | None
    iterations: float
    steps: int


def rows(
    contenders: Sequence[Contender], memory: dict[str, float | None], batch_size: int
) -> list[Row]:
    """The measurements, each beside backprop's."""
    medians = {c.name: statistics.median(c.times) for c in contenders}
    reference = "backprop" if "backprop" in medians else "plain"
    found = []
    for c in contenders:
        low, _, high = statistics.quantiles(c.times, n=4) if len(c.times) > 1 else (c.times[0],) * 3
        angles = [angle for layers in c.angles for angle in layers]
        base, own = memory.get(reference), memory.get(c.name)
        found.append(
            Row(
                contender=c.name,
                ms=1000 * medians[c.name],
                ms_low=1000 * low,
                ms_high=1000 * high,
                images_per_second=batch_size / medians[c.name],
                ratio=medians[c.name] / medians[reference] if reference in medians else None,
                memory=own,
                memory_ratio=own / base if own and base else None,
                angle_max=max(angles) if angles else None,
                angle_mean=statistics.mean(angles) if angles else None,
                iterations=c.iterations / max(1, c.steps),
                steps=c.steps,
            )
        )
    return found


HEADINGS = (
    "contender",
    "ms a step",
    "quartiles",
    "images/s",
    "×",
    "peak MiB",
    "×",
    "angle max",
    "mean",
    "probes",
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, under ``HEADINGS``."""
    return (
        row.contender,
        f"{row.ms:.1f}",
        f"{row.ms_low:.1f}–{row.ms_high:.1f}",
        f"{row.images_per_second:.0f}",
        number(row.ratio, 2),
        number(row.memory, 0),
        number(row.memory_ratio, 2),
        number(row.angle_max, 2, "°"),
        number(row.angle_mean, 2, "°"),
        f"{row.iterations:.1f}",
    )


def write(
    results: dict[str, list[Row]], settings: Sequence[Setting], warmup: int, out: Path
) -> dict[str, Any]:
    """Write ``bench.json``, ``bench.md`` and ``bench.png``; returns what the first holds."""
    record = environment(pick_device(settings[0].device), 0)
    measured = [
        {
            "setting": dataclasses.asdict(s),
            "warmup": warmup,
            "rows": [dataclasses.asdict(r) for r in results[s.network]],
        }
        for s in settings
    ]
    whole = {"environment": record, "results": measured}
    write_text(out / "bench.json", json.dumps(whole, indent=2) + "\n")
    text = provenance(record)
    for setting in settings:
        text += f"\n## {setting.network}, batch {setting.batch_size}, {setting.precision}\n\n"
        text += markdown(HEADINGS, [cells(row) for row in results[setting.network]])
    write_text(out / "bench.md", text)
    points = {
        name: [dataclasses.asdict(r) for r in found if r.ratio is not None]
        for name, found in results.items()
    }
    if all(points.values()):
        draw_cost(points, out / "bench.png")
    return whole
