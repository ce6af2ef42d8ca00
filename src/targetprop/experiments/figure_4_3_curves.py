"""Figure 4.3's angles as curves: over each solver's iterations and their cost, and over training.

The paper shows them at one moment, after 5,000 iterations on frozen θ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from targetprop.algorithms import LDRL
from targetprop.analysis.figures import Line, Panel, draw_panels
from targetprop.experiments.cells import (
    Place,
    Result,
    cell,
    lenet_batch,
    slug,
    write_csv,
)
from targetprop.experiments.figure_4_3 import BETA, LAYERS, SEEDS, aligned, paper, step
from targetprop.experiments.trained import train
from targetprop.feedback import CorrelationSolver, Fixed, PredictiveSolver, Solver, Symmetric
from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import ROWS
from targetprop.laboratory.layers import Layer, Trace
from targetprop.training import config
from targetprop.training.logging import read_metrics

ITERATIONS: dict[str, Result] = {
    "smoke": {"data": "digits", "iterations": 20},
    "cpu": {"data": "cifar10", "iterations": 100},
    "paper": {"data": "cifar10", "iterations": 5000},
}


@dataclass(frozen=True)
class Way:
    """A way to learn ω.

    Attributes:
        solver: one call is one iteration.
        passes: of an iteration, in products of a layer with the samples it takes.
        samples: (d, samples of the batch times positions) ↦ patches or positions of an iteration.
        most: iterations after which nothing is left to see.
    """

    solver: Solver
    passes: int
    samples: Callable[[int, int], int]
    most: int = 5000

    def cost(self, leaves: list[tuple[Layer, Trace]]) -> float:
        """Passes of an iteration of these layers, one being a product of each with the batch."""
        whole = spent = 0
        for layer, trace in leaves:
            positions = layer.map.apply(trace.input, layer.theta).numel() // len(layer.theta)
            whole += positions * layer.theta.numel()
            spent += (
                self.passes * self.samples(layer.theta[0].numel(), positions) * layer.theta.numel()
            )
        return spent / whole


WAYS = {
    "paper's solver": Way(paper, 4, lambda d, positions: positions),
    "correlation": Way(
        CorrelationSolver(window=10**6, first_iterations=1),
        2,
        lambda d, positions: min(ROWS, 2 * d),
    ),
    "predictive": Way(
        PredictiveSolver(tolerance=0.0, tracking=False),
        3,
        lambda d, positions: 1 << (d - 1).bit_length(),
        10,
    ),
}


def marks(iterations: int) -> list[int]:
    """Iterations after which to measure, about evenly spaced on a logarithmic scale."""
    found = [0, 1]
    while found[-1] < iterations:
        found.append(min(iterations, max(found[-1] + 1, round(1.4 * found[-1]))))
    return found


def curve(way: Way, kind: str, seed: int, settings: Result, data_dir: str | None) -> Result:
    """The angle of every layer's update after each of the ``marks``, and where ω = θᵀ leaves it."""
    net, (x, y) = lenet_batch(settings["data"], data_dir, seed, False, kind, "flip-crop")
    algo, generator = LDRL(net, BETA, Fixed()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])[1:]
    memories = [Memory() for _ in leaves]
    measured = marks(min(settings["iterations"], way.most))
    found: Result = {
        "iteration": measured,
        "passes": [i * way.cost(leaves) for i in measured],
        "angle": [],
    }

    def angles() -> list[float]:
        return aligned(*step(net, algo, x, y))["angle"]

    def iterate(solver: Solver) -> None:
        with torch.no_grad():
            for index, ((layer, trace), memory) in enumerate(zip(leaves, memories, strict=True)):
                solver.train(index, layer, trace, memory, generator)

    for i in range(measured[-1] + 1):
        if i:
            iterate(way.solver)
        if i in measured:
            found["angle"].append(angles())
    iterate(Symmetric())
    return {**found, "limit": angles()}


def over_iterations(place: Place) -> None:
    """Matched and mirror, all solvers, first seed: ``alignment-over-iterations`` .csv .png .pdf."""
    settings = {**ITERATIONS[place.scale], "seed": SEEDS[0]}
    results: dict[str, Result] = {}
    for kind in ("mirror", "matched"):
        for name, way in WAYS.items():

            def compute(_: Path, way: Way = way, kind: str = kind) -> Result:
                return curve(way, kind, SEEDS[0], settings, place.data_dir)

            label = f"{name}, {kind}"
            results[label] = cell(place, f"over-iterations/{slug(label)}", settings, compute)
    shown, rows = [], []
    for key, words in (
        ("iteration", "iterations of every layer"),
        ("passes", "passes (products of every layer with the batch)"),
    ):
        for n, layer in enumerate(LAYERS[:-1]):
            lines = []
            for label, run in results.items():
                style = {"ls": "--" if label.endswith("mirror") else "-"}
                lines.append(
                    Line(label, run[key], [angles[n] for angles in run["angle"]], style=style)
                )
            longest = [0, max(run[key][-1] for run in results.values())]
            for kind in ("mirror", "matched"):
                limit = results[f"predictive, {kind}"]["limit"][n]
                style = {"ls": "--" if kind == "mirror" else "-", "lw": 0.8}
                lines.append(Line(f"ω = θᵀ, {kind}", longest, [limit, limit], style=style))
            scale = "symlog"
            shown.append(
                Panel(
                    layer, words, "angle to the backprop gradient (degrees)", lines, scale, floor=0
                )
            )
    for label, run in results.items():
        for i, spent, angles in zip(run["iteration"], run["passes"], run["angle"], strict=True):
            rows.append(
                {
                    "condition": label,
                    "iteration": i,
                    "passes": spent,
                    **dict(zip(LAYERS, angles, strict=True)),
                }
            )
    draw_panels(
        shown,
        [place.folder / f"alignment-over-iterations.{suffix}" for suffix in ("png", "pdf")],
        3,
    )
    write_csv(place.folder / "alignment-over-iterations.csv", rows)


TRAINING: dict[str, Result] = {
    "smoke": {
        "data.name": "digits",
        "data.augment": "none",
        "data.batch_size": 64,
        "steps": 6,
        "measure_every": 2,
    },
    "cpu": {"data.name": "cifar10", "steps": 100, "measure_every": 10},
    "paper": {"data.name": "cifar10", "epochs": 90, "measure_every": 350},
}
VARIANTS: dict[str, tuple[str, Result]] = {
    "L-DRL, paper's solver": ("cifar10-lenet-ldrl-paper", {}),
    "correlation, matched": ("cifar10-lenet-ldrl", {"algorithm.solver": "correlation"}),
    "predictive, matched": ("cifar10-lenet-ldrl", {}),
}


def over_training(place: Place) -> None:
    """LeNet trained by each solver, angles by step: ``alignment-over-training`` .csv .png .pdf."""
    chosen = TRAINING[place.scale]
    shown, rows = [], []
    for label, (preset, settings) in VARIANTS.items():
        overrides = {**settings, **chosen, "data.validation": 0, "data.dir": place.data_dir}
        run = config.load(
            preset, [(key, value) for key, value in overrides.items() if value is not None]
        )
        where = f"training/{slug(label)}"
        train(place, where, run)
        folder = place.folder / "cells" / where / "run"
        measured = [row for row in read_metrics(folder / "metrics.jsonl") if row.get("angle")]
        at = [row["step"] for row in measured]
        lines = [
            Line(layer, at, [row["angle"][layer] for row in measured])
            for layer in measured[0]["angle"]
        ]
        shown.append(
            Panel(label, "step", "angle to the backprop gradient (degrees)", lines, floor=0)
        )
        rows += [{"condition": label, "step": row["step"], **row["angle"]} for row in measured]
    draw_panels(
        shown, [place.folder / f"alignment-over-training.{suffix}" for suffix in ("png", "pdf")], 3
    )
    write_csv(place.folder / "alignment-over-training.csv", rows)
