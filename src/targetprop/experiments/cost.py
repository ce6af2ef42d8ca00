"""What a step costs: the paper reports training by L-DRL up to 30 times slower than by backprop."""

from __future__ import annotations

import dataclasses
from typing import Any

from targetprop import data
from targetprop.analysis.bench_figures import draw_cost
from targetprop.analysis.tables import number
from targetprop.benchmarking import bench, contenders
from targetprop.experiments.cells import Place, Result, cell, write_csv, write_markdown

REAL: Result = {
    "data": "cifar10",
    "networks": ["lenet", "simple_vgg"],
    "channels": None,
    "batch": 128,
    "warmup": 50,
    "steps": 100,
    "lr": 0.03,
}
SMALL: Result = {
    "data": "digits",
    "networks": ["simple_vgg"],
    "channels": [4, 4, 8, 8, 8],
    "batch": 16,
    "warmup": 1,
    "steps": 10,
}
SCALES: dict[str, Result] = {"smoke": {**SMALL, "lr": 0.03}, "cpu": REAL, "paper": REAL}
CONTENDERS = ("plain", "backprop", "ldrl", "untracked", "paper")


def reproduce(place: Place) -> None:
    """Time what is missing, then write the table: ``cost`` .csv, .png, .pdf and .md."""
    settings = SCALES[place.scale]
    dataset = data.load(settings["data"], place.data_dir)
    found: dict[str, list[dict[str, Any]]] = {}
    for network in settings["networks"]:
        setting = contenders.Setting(
            network, settings["channels"], settings["batch"], lr=settings["lr"]
        )

        def compute(folder: Any, setting: contenders.Setting = setting) -> Result:
            memory = place.scale != "smoke"
            rows = bench.bench(
                CONTENDERS, setting, dataset, settings["warmup"], settings["steps"], memory
            )
            return {"rows": [dataclasses.asdict(row) for row in rows]}

        own = {**settings, "network": network}
        found[network] = cell(place, network, own, compute, setting.device)["rows"]
    rows = [{"network": network, **row} for network, rows in found.items() for row in rows]
    write_csv(place.folder / "cost.csv", rows)
    for suffix in ("png", "pdf"):
        draw_cost(found, place.folder / f"cost.{suffix}")
    lines = []
    for row in rows:
        known = "up to 30" if row["contender"] == "paper" else "–"
        angles = (number(row["angle_max"], 2, "°"), number(row["angle_mean"], 2, "°"))
        times = (f"{row['ms']:.1f}", number(row["ratio"], 2), known, number(row["memory_ratio"], 2))
        lines.append((row["network"], row["contender"], *times, *angles))
    about = (
        f"Milliseconds a step of {settings['batch']} {settings['data']} images, medians of "
        "interleaved turns, and the ratio to backprop; angles of the updates to the backprop "
        "gradient after warm-up. The published factor is of the authors' code on GPUs."
    )
    headings = ("network", "contender", "ms", "×", "published ×", "memory ×", "angle max", "mean")
    write_markdown(place, "cost", "What a step costs", about, headings, lines)
