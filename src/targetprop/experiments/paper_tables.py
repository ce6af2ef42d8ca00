"""Tables 1 and 2 of Ernoult et al. (2022): test accuracies of L-DRL, backprop and its rivals."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from targetprop.analysis.figures import draw_bars
from targetprop.experiments.cells import (
    Place,
    Result,
    listed,
    mean_and_std,
    slug,
    spread,
    write_csv,
    write_markdown,
)
from targetprop.experiments.trained import RATE, best_rate, train
from targetprop.training import config
from targetprop.tuning.space import settled

Results = dict[tuple[str, str], list[Result]]


@dataclass(frozen=True)
class Scale:
    """How much is trained.

    Attributes:
        sets: data sets, the rows.
        seeds: their seeds.
        settings: over every preset.
        reduced: what differs from the paper, in words.
        grid: learning rates to choose from, by the first seed's validation; empty for the presets'.
        trial: settings over ``settings`` of the runs that choose.
    """

    sets: Sequence[str]
    seeds: Sequence[int]
    settings: Result
    reduced: str
    grid: Sequence[float] = ()
    trial: Result = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What a table holds.

    Attributes:
        title: of the table.
        network: as in the names of presets.
        columns: label ↦ (variant of the preset, settings over it).
        scales: by name.
        published: (set, column) ↦ what papers give, as text.
        untuned: columns that keep their preset's learning rate.
    """

    title: str
    network: str
    columns: dict[str, tuple[str, Result]]
    scales: dict[str, Scale]
    published: dict[tuple[str, str], str]
    untuned: Sequence[str] = ()


ALIKE: Result = {
    "schedule.unit": "step",
    "schedule.minimum": 0.0,
    "data.batch_size": 128,
    "optimizer.weight_decay": 1e-4,
}
"""Of reduced runs: the same batch and schedule for every column."""

SMOKE = Scale(
    ["digits"],
    [0],
    {**ALIKE, "steps": 8, "schedule.period": 8, "data.batch_size": 32},
    "digits, 8 steps of 32 images: tries the machinery, says nothing about the algorithms",
    (0.003, 0.03),
)

SETS = ["mnist", "fashion-mnist", "cifar10"]
SEEDS = [123, 124, 125, 126, 127]
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
PAPERS = "L-DRL, paper's solver"
TABLE_1 = Contents(
    title="Table 1: LeNet",
    network="lenet",
    columns={
        "backprop": ("backprop", {}),
        "L-DRL": ("ldrl", {}),
        PAPERS: ("ldrl-paper", {}),
        "DTP": (
            "backprop",
            {
                "algorithm.name": "dtp",
                "reconstruction.lr": [3e-6, 3e-5, 3e-4],
                "reconstruction.iterations": 5,
            },
        ),
        "DRL": ("backprop", {"algorithm.name": "drl"}),
        "s-DDTP": ("backprop", {"algorithm.name": "ddtp_linear"}),
        "p-DDTP": ("backprop", {"algorithm.name": "ddtp_linear", "drl.schedule": "parallel"}),
        "FA": ("backprop", {"algorithm.name": "feedback_alignment"}),
    },
    scales={
        "smoke": SMOKE,
        "cpu": Scale(
            SETS,
            [0],
            {**ALIKE, "epochs": 8, "schedule.period": None, "measure_every": 200},
            "8 epochs instead of 90",
            GRID,
            {"epochs": 1},
        ),
        "paper": Scale(SETS, SEEDS, {"epochs": 90}, "nothing"),
    },
    published={
        ("mnist", PAPERS): "98.93 ± 0.04",
        ("fashion-mnist", PAPERS): "90.91 ± 0.17 or 90.35 ± 0.11 (citing papers disagree)",
        ("cifar10", PAPERS): "85.3 (unverified)",
        ("cifar10", "backprop"): "86.3 (unverified)",
        ("cifar10", "s-DDTP"): "best DDTP 76.0 (unverified)",
    },
    untuned=(PAPERS,),
)
PERCEPTRONS = Scale(
    SETS,
    [0, 1, 2],
    {**ALIKE, "epochs": 10, "schedule.period": None, "measure_every": 200},
    "10 epochs",
    (3e-3, 1e-2, 3e-2, 1e-1),
    {"epochs": 2},
)
CRITIQUE = Contents(
    title="Tanh perceptrons: are they learned below feedback alignment?",
    network="mlp",
    columns={
        "backprop": ("backprop", {}),
        "L-DRL": ("ldrl", {}),
        PAPERS: ("ldrl-paper", {}),
        "FA": ("backprop", {"algorithm.name": "feedback_alignment"}),
    },
    scales={"smoke": SMOKE, "cpu": PERCEPTRONS, "paper": PERCEPTRONS},
    published={
        (data_name, column): f"{value:.2f} (Kao and Hariharan 2024)"
        for data_name, values in {
            "mnist": (98.19, 93.29),
            "fashion-mnist": (89.58, 83.60),
            "cifar10": (50.03, 42.19),
        }.items()
        for column, value in zip(("backprop", PAPERS), values, strict=True)
    },
)
TABLE_2 = Contents(
    title="Table 2: SimpleVGG",
    network="vgg",
    columns={"backprop": ("backprop", {}), "L-DRL": ("ldrl", {}), PAPERS: ("ldrl-paper", {})},
    scales={
        "smoke": SMOKE,
        "cpu": Scale(
            ["cifar10"],
            [0, 1, 2],
            {
                **ALIKE,
                "network.channels": [32, 64, 128, 128, 256],
                "epochs": 2,
                "steps": 700,
                "schedule.period": 700,
            },
            "widths 32-64-128-128-256 instead of 128-128-256-256-512; "
            "700 steps of 128 images (two epochs) instead of 90 epochs",
        ),
        "paper": Scale(["cifar10", "imagenet32"], SEEDS, {"epochs": 90}, "nothing"),
    },
    published={("cifar10", PAPERS): "89.38 ± 0.20", ("cifar10", "backprop"): "89.07 ± 0.22"},
)


def chosen(
    contents: Contents, scale: str, data_name: str, column: str, seed: int, data_dir: str | None
) -> config.Config:
    """A cell's configuration; at a reduced scale every column sees the images of backprop's."""
    variant, settings = contents.columns[column]
    presets = config.presets()
    prefix = "digits" if data_name == "digits" else f"{data_name}-{contents.network}"
    overrides: Result = {**settings, **contents.scales[scale].settings, "seed": seed}
    if scale != "paper":
        base = presets[f"{prefix}-backprop"]
        overrides |= {
            key: base[key]
            for key in ("data.augment", "data.padding")
            if key in base and key not in settings
        }
    if data_dir:
        overrides["data.dir"] = data_dir
    return config.load(f"{prefix}-{variant}", list(overrides.items()))


def columns(contents: Contents, scale: str) -> list[str]:
    """The columns of a scale: a reduced table 2 leaves the paper's solver to table 1."""
    return [
        c for c in contents.columns if scale != "cpu" or contents.network == "lenet" or c != PAPERS
    ]


def reproduce(contents: Contents, name: str, place: Place) -> None:
    """Train what is missing, seed by seed and row by row; the table is written anew after each row.

    Where the scale has a grid, each column's learning rate is chosen from it first, but for those
    that keep what their authors tuned.
    """
    scale = contents.scales[place.scale]
    seeds = place.choose(scale.seeds)
    labels = columns(contents, place.scale)
    plans = {
        (d, c): chosen(contents, place.scale, d, c, seeds[0], place.data_dir)
        for d in scale.sets
        for c in labels
    }
    results: Results = {}
    for seed in seeds:
        for data_name in scale.sets:
            for column in labels:
                plan, where = plans[data_name, column], f"{data_name}/{slug(column)}"
                if scale.grid and column not in contents.untuned:
                    short = settled(plan, scale.trial)
                    plan = settled(plan, {RATE: best_rate(place, where, short, scale.grid)})
                found = train(place, f"{where}/seed-{seed}", dataclasses.replace(plan, seed=seed))
                found = {**found, "lr": plan.optimizer.lr}
                results.setdefault((data_name, column), []).append(found)
            write(contents, name, place, results, seeds[: seeds.index(seed) + 1])


def scale_of_trials(scale: Scale) -> str:
    """How the runs that chose the rates differed from the others, in words."""
    differing = ", ".join(f"{key} {value}" for key, value in scale.trial.items())
    return f" ({differing})" if differing else ""


def write(contents: Contents, name: str, place: Place, results: Results, seeds: Sequence[int]):
    """The table as .csv, .png, .pdf and .md."""
    scale = contents.scales[place.scale]
    labels = columns(contents, place.scale)
    rows: list[dict[str, Any]] = []
    means: dict[str, list[float]] = {label: [] for label in labels}
    stds: dict[str, list[float]] = {label: [] for label in labels}
    table = []
    sets = [data_name for data_name in scale.sets if (data_name, labels[-1]) in results]
    for data_name in sets:
        shown = [data_name]
        for label in labels:
            runs = [run for run in results[data_name, label] if "diverged" not in run]
            lost = len(results[data_name, label]) - len(runs)
            (mean,), (std,) = (
                mean_and_std([100 * run["test"]["accuracy"]] for run in runs)
                if runs
                else ([0.0], [0.0])
            )
            means[label].append(mean)
            stds[label].append(std)
            known = contents.published.get((data_name, label))
            text = [spread(mean, std, len(runs))] if runs else []
            text += [f"{lost} diverged"] if lost else []
            text += [f"published {known}"] if known else []
            shown.append("; ".join(text))
            text += [f"lr {results[data_name, label][0]['lr']:g}"]
            seconds = statistics.mean(run["seconds_per_step"] for run in runs) if runs else None
            degrees = [run["angle_max"] for run in runs if run["angle_max"] is not None]
            rows.append(
                {
                    "set": data_name,
                    "column": label,
                    "accuracy": mean if runs else None,
                    "std": std if runs else None,
                    "seeds": len(runs),
                    "diverged": lost,
                    "lr": results[data_name, label][0]["lr"],
                    "steps": runs[0]["steps"] if runs else None,
                    "seconds_per_step": seconds,
                    "angle_max": max(degrees, default=None),
                }
            )
        table.append(shown)
    pictures = [place.folder / f"{name}.{s}" for s in ("png", "pdf")]
    draw_bars(sets, means, stds, {}, "test accuracy (%)", pictures)
    write_csv(place.folder / f"{name}.csv", rows)
    untuned = "".join(f"; {column} keeps its authors'" for column in contents.untuned)
    rates = (
        "Learning rates: of each column the best of "
        f"{', '.join(f'{rate:g}' for rate in scale.grid)} by validation accuracy of seed "
        f"{seeds[0]}{scale_of_trials(scale)}{untuned}. "
    )
    about = (
        f"Test accuracy in per cent, mean ± standard deviation, {listed(seeds)}; tested once, with "
        "the weights selected on 10 % of the training images. "
        f"{rates if scale.grid else ''}Reduced against the paper: {scale.reduced}."
    )
    write_markdown(place, name, contents.title, about, ("set", *labels), table)
