"""The evidence at length: one queue of runs, each taken up where it stopped, in a stated order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from targetprop.analysis.figures import Line, Panel, draw_panels, smoothed
from targetprop.analysis.tables import angle_summary, number
from targetprop.experiments import char_gpt, cost, figure_4_3_curves, paper_tables
from targetprop.experiments.cells import Place, Result, listed, slug, write_csv, write_markdown
from targetprop.experiments.trained import train
from targetprop.training import config
from targetprop.training.logging import read_metrics


@dataclass(frozen=True)
class Entry:
    """Runs that are compared.

    Attributes:
        name: of the folder.
        title: of the picture and the table's rows.
        runs: label ↦ preset, or the rule of a character GPT.
        settings: over every preset.
        published: label ↦ what a paper gives, as text.
    """

    name: str
    title: str
    runs: dict[str, str]
    settings: Result = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)

    @property
    def epochs(self) -> int | None:
        """Of every run; None for the GPT, which counts steps."""
        return self.settings.get("epochs")


def presets(prefix: str, *variants: str) -> dict[str, str]:
    """Label ↦ preset."""
    return {variant: f"{prefix}-{variant}" for variant in variants}


ALL: Result = {"data.validation": 0.0, "measure_every": 400}
"""Every training image is trained on, and the test images are looked at once, at the end."""

QUEUE = (
    Entry(
        "simple-vgg",
        "CIFAR-10, SimpleVGG, 90 epochs",
        presets("cifar10-vgg", "ldrl", "backprop"),
        {**ALL, "epochs": 90},
        {"ldrl": "89.38 ± 0.20 %", "backprop": "89.07 ± 0.22 %"},
    ),
    Entry(
        "char-gpt",
        "character GPT, 5,000 steps",
        {rule: rule for rule in ("backprop", "ldrl", "feedback_alignment")},
    ),
    Entry(
        "resnet20",
        "CIFAR-10, ResNet-20 with batch normalisation, 12 epochs",
        presets("cifar10-resnet20", "backprop", "ldrl", "sign_symmetry", "feedback_alignment"),
        {**ALL, "epochs": 12},
    ),
    Entry(
        "imagenet32",
        "ImageNet at 32×32 or a subset, SimpleVGG, 8 epochs, one cosine for both",
        presets("imagenet32-vgg", "backprop", "ldrl"),
        {
            **ALL,
            "epochs": 8,
            "schedule.name": "cosine",
            "schedule.unit": "step",
            "schedule.period": None,
        },
    ),
    Entry(
        "vit",
        "CIFAR-10, vision transformer, 10 epochs",
        presets("cifar10-vit", "backprop", "ldrl", "feedback_alignment"),
        {**ALL, "epochs": 10},
    ),
)

FURTHER = {
    "critique": partial(paper_tables.reproduce, paper_tables.CRITIQUE, "critique"),
    "table-1": partial(paper_tables.reproduce, paper_tables.TABLE_1, "table-1"),
    "cost": cost.reproduce,
    "over-training": figure_4_3_curves.over_training,
}
"""What comes behind the runs, in this order."""

ON_DIGITS = {
    "cifar10-vgg": "digits",
    "imagenet32-vgg": "digits",
    "resnet20": "resnet",
    "cifar10": "digits",
}
"""What stands for what in a preset's name, to smoke."""

PARTS = (*(entry.name for entry in QUEUE), *FURTHER)

SMOKE: Result = {
    "data.limit": 100,
    "data.batch_size": 20,
    "steps": 4,
    "log_every": 1,
    "measure_every": 2,
}


def reproduce(place: Place) -> None:
    """Train what is missing, in the queue's order; then, or when stopped, write the results.

    Raises:
        Interrupted: the deadline passed, or a signal asked to stop; the run is saved.
    """
    seeds = place.choose([0, 1, 2] if place.scale == "paper" else [0])
    found: dict[tuple[str, str, int], Result] = {}
    try:
        for entry, seed in itertools.product(QUEUE, seeds):
            if place.only and entry.name not in place.only:
                continue
            for label in entry.runs:
                where = run_folder(entry, label, seed)
                found[entry.name, label, seed] = one(place, entry, label, seed, where)
    finally:
        write(place, found, seeds)
    further = {name: make for name, make in FURTHER.items() if name in (place.only or FURTHER)}
    if place.scale == "smoke":
        place.tell(f"{', '.join(further)}: left to 'targetprop reproduce NAME --scale smoke'")
        return
    for name, make in further.items():
        folder = place.folder / name
        folder.mkdir(exist_ok=True)
        make(dataclasses.replace(place, folder=folder, only=()))


def run_folder(entry: Entry, label: str, seed: int) -> str:
    """Of a cell."""
    return f"{entry.name}/{slug(label)}/seed-{seed}"


def one(place: Place, entry: Entry, label: str, seed: int, where: str) -> Result:
    """The result of one run."""
    if entry.epochs is None:
        small: dict[str, Any] = {"steps": 4, "batch": 2, "context": 16, "every": 2}
        own = small if place.scale == "smoke" else {}
        return char_gpt.train(place, where, char_gpt.Plan(entry.runs[label], seed, **own))
    settings = {**entry.settings, "seed": seed}
    preset = entry.runs[label]
    if place.scale == "smoke":
        settings |= SMOKE
        for of_images, of_digits in ON_DIGITS.items():
            preset = preset.replace(of_images, of_digits)
    if place.scale == "paper":
        settings["dtype"] = "tf32"
    if place.data_dir:
        settings["data.dir"] = place.data_dir
    return train(place, where, config.load(preset, list(settings.items())))


def write(place: Place, found: dict[tuple[str, str, int], Result], seeds: Sequence[int]) -> None:
    """``evidence`` .csv, .md, .png and .pdf, and a picture of every entry that has begun."""
    rows, curves = [], {}
    for entry in QUEUE:
        for label, seed in itertools.product(entry.runs, seeds):
            folder = place.folder / "cells" / run_folder(entry, label, seed) / "run"
            metrics = read_metrics(folder / "metrics.jsonl")
            if any(row["kind"] == "train" for row in metrics):
                result = found.get((entry.name, label, seed))
                rows.append(row(entry, label, seed, metrics, result))
                if seed == seeds[0]:
                    curves.setdefault(entry.name, {})[label] = (metrics, result)
    if not rows:
        return
    write_csv(place.folder / "evidence.csv", rows)
    headings = ("runs", "algorithm", "seed", *HEADINGS, "published")
    table = [
        (
            line["runs"],
            line["algorithm"],
            str(line["seed"]),
            line["state"],
            number(line["loss"], 4),
            number(line["accuracy"], 2, " %"),
            number(line["top5"], 2, " %"),
            number(line["angle_max"], 2, "°"),
            number(line["angle_mean"], 3, "°"),
            number(line["minutes"], 1),
            line["published"] or "–",
        )
        for line in rows
    ]
    about = (
        f"{listed(seeds)}. Loss and accuracy on the test images, looked at once, at the end of "
        "training on all others (of the GPT: on the last tenth of the text). Angles are of every "
        "layer's or parameter's update to the backprop gradient, every 400 (GPT: 250) steps. "
        "Minutes are those spent in steps. Unfinished runs say how far they are."
    )
    write_markdown(place, "evidence", "Evidence at length", about, headings, table)
    every = []
    for entry in QUEUE:
        if entry.name in curves:
            shown = panels(entry, curves[entry.name])
            draw_panels(shown, [place.folder / f"{entry.name}.png"], columns=3)
            every.append(shown[0])
    draw_panels(every, [place.folder / f"evidence.{s}" for s in ("png", "pdf")], columns=3)


HEADINGS = ("state", "loss", "accuracy", "top-5", "largest angle", "mean angle", "minutes")


def row(
    entry: Entry, label: str, seed: int, metrics: list[dict[str, Any]], result: Result | None
) -> dict[str, Any]:
    """A run's line of the table."""
    last = max(row["step"] for row in metrics)
    state, test = f"at step {last}", {}
    if result is not None and "diverged" in result:
        state = "diverged"
    elif result is not None:
        state, test = f"{result['steps']} steps", result["test"]
    seconds = max((row.get("seconds", 0.0) for row in metrics), default=0.0)

    def percent(key: str) -> float | None:
        return 100 * test[key] if key in test else None

    return {
        "runs": entry.title,
        "algorithm": label,
        "seed": seed,
        "state": state,
        "loss": test.get("loss"),
        "accuracy": percent("accuracy"),
        "top5": percent("top5"),
        **angle_summary(metrics),
        "minutes": seconds / 60,
        "published": entry.published.get(label, ""),
    }


def panels(
    entry: Entry, runs: dict[str, tuple[list[dict[str, Any]], Result | None]]
) -> list[Panel]:
    """Loss against epochs (of the GPT: steps) and against seconds, and the largest angle."""
    longest = max(
        (result["steps"] for _, result in runs.values() if result and "steps" in result),
        default=None,
    )
    scale, unit = (entry.epochs / longest, "epoch") if entry.epochs and longest else (1, "step")
    by_step, by_time, angles = [], [], []
    for (label, (metrics, _)), dash in zip(runs.items(), itertools.cycle(("-", "--", ":", "-."))):
        train_rows = [row for row in metrics if row["kind"] == "train"]
        losses = smoothed([row["loss"] for row in train_rows], max(1, len(train_rows) // 60))
        style = {"linestyle": dash}
        steps = [scale * row["step"] for row in train_rows]
        minutes = [row.get("seconds", 0.0) / 60 for row in train_rows]
        by_step.append(Line(label, steps, losses, style=style))
        by_time.append(Line(label, minutes, losses, style=style))
        measured = [row for row in train_rows if max(row.get("angle", {"": 0}).values()) > 0]
        if measured:
            worst = [max(row["angle"].values()) for row in measured]
            angles.append(Line(label, [scale * r["step"] for r in measured], worst, style=style))
    title = entry.title.replace(", ", "\n", 1)
    drawn = [
        Panel(title, unit, "training loss", by_step),
        Panel("the same against time", "minutes in steps", "training loss", by_time),
        Panel("largest angle to backprop", unit, "degrees", angles, yscale="log"),
    ]
    return [panel for panel in drawn if panel.lines]
