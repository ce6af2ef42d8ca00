"""Figure 4.2 of Ernoult et al. (2022): does the output layer's ω reach the transpose of its θ?

LeNet with frozen random forward weights, one fixed batch a seed; only the feedback weight of the
output layer learns. The paper compares L-DRL with the difference reconstruction loss of Meulemans
et al. (2020); here the other solvers stand beside them, against iterations and against compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from targetprop.algorithms import DDTPLinear
from targetprop.analysis.alignment import angle, distance
from targetprop.analysis.figures import Line, Panel, draw_panels
from targetprop.experiments.cells import (
    Place,
    Result,
    lenet_batch,
    listed,
    mean_and_std,
    seed_by_seed,
    spread,
    write_csv,
    write_markdown,
)
from targetprop.feedback import CorrelationSolver, PredictiveSolver, SGDSolver, Solver
from targetprop.feedback.memory import Memory
from targetprop.laboratory.layers import Layer, Trace
from targetprop.laboratory.pairing import Network

SEEDS = (123, 234, 345, 456, 567)
SCALES: dict[str, Result] = {
    "smoke": {"data": "digits", "iterations": 200},
    "cpu": {"data": "cifar10", "iterations": 5000},
    "paper": {"data": "cifar10", "iterations": 5000},
}
PUBLISHED = {
    255: 84.8,
    574: 73,
    893: 54.7,
    1212: 34,
    1530: 18.8,
    1850: 10,
    2170: 5.6,
    2490: 3.7,
    2810: 2.9,
    4000: 2.66,
}
"""Iteration ↦ degrees, read from the published picture of L-DRL (PAPER-DETAILS 6.2)."""
PUBLISHED_DRL = 17.1
"""Degrees at which the published curve of DRL stays."""

Leaves = Sequence[tuple[Layer, Trace]]


@dataclass(frozen=True)
class Way:
    """A way to learn the output layer's feedback weight.

    Attributes:
        begin: (network, its leaf traces, seed) ↦ (one update, the weight it moves, laid out as θ).
        passes: of an iteration, in products of the layer with the batch.
    """

    begin: Callable[[Network, Leaves, int], tuple[Callable[[], Any], Tensor]]
    passes: float


def by_solver(
    solver: Solver, net: Network, leaves: Leaves, seed: int
) -> tuple[Callable[[], Any], Tensor]:
    """One call of a solver an iteration."""
    layer, trace = leaves[-1]
    return partial(
        solver.train, 0, layer, trace, Memory(), torch.Generator().manual_seed(seed)
    ), layer.omega


def by_drl(net: Network, leaves: Leaves, seed: int) -> tuple[Callable[[], Any], Tensor]:
    """Adam on the difference reconstruction loss, all as in Meulemans et al. (PAPER-DETAILS 8)."""
    leaves = net.leaf_traces(net.trace(leaves[0][1].input[:128])[1])
    # Their loss is the mean over the layer's units: weight decay weighs more by their number.
    units = leaves[-2][1].output[0].numel()
    algo = DDTPLinear(
        net, noise=0.0092104, lr=0.00451575, weight_decay=6.1693e-5 * units, seed=seed
    )
    return partial(algo.reconstruct, len(leaves) - 2, leaves), algo.direct(len(leaves) - 2, leaves)


WAYS = {
    "L-DRL, paper's solver": Way(
        partial(by_solver, SGDSolver(noise=0.1, lr=0.01, iterations=1, momentum=0.9)), 4
    ),
    "DRL": Way(by_drl, 3),
    # Noise of 1024 samples, four times the batch, through two products; the solve: 512, three.
    "L-DRL, correlation": Way(
        partial(by_solver, CorrelationSolver(window=10**6, first_iterations=1)), 8
    ),
    "L-DRL, predictive": Way(
        partial(by_solver, PredictiveSolver(tolerance=0.02, tracking=False)), 6
    ),
}


def marks(iterations: int) -> list[int]:
    """The iterations after which the weight is measured."""
    every = max(1, iterations // 200)
    return sorted(
        {*range(21), *range(0, iterations + 1, every), *(i for i in PUBLISHED if i <= iterations)}
    )


@torch.no_grad()
def curve(way: Way, seed: int, settings: Result, data_dir: str | None) -> Result:
    """Angle and relative distance of the feedback weight to θ after each of the ``marks``."""
    net, (x, _) = lenet_batch(
        settings["data"], data_dir, seed, bias=True, kind="mirror", augment="none"
    )
    leaves = net.leaf_traces(net.trace(x)[1])
    theta = leaves[-1][0].theta
    update, omega = way.begin(net, leaves, seed)
    found: Result = {"iteration": [], "angle": [], "distance": []}
    measured = set(marks(settings["iterations"]))
    for i in range(settings["iterations"] + 1):
        if i in measured:
            found["iteration"].append(i)
            found["angle"].append(angle(theta, omega).item())
            found["distance"].append(distance(theta, omega).item())
        update()
    return found


def reproduce(place: Place) -> None:
    """Compute what is missing, and write CSV, pictures and a table, anew after each seed."""
    settings = SCALES[place.scale]

    def compute(label: str, seed: int, _: Path) -> Result:
        return curve(WAYS[label], seed, settings, place.data_dir)

    for results, seeds in seed_by_seed(place, place.choose(SEEDS), settings, WAYS, compute):
        write(place, results, seeds)


def write(place: Place, results: dict[str, list[Result]], seeds: Sequence[int]) -> None:
    """``figure-4.2`` as .csv, .png, .pdf and .md."""
    rows, lines = [], {"angle": [], "distance": [], "compute": []}
    for label, runs in results.items():
        at = runs[0]["iteration"]
        degrees, degrees_std = mean_and_std(run["angle"] for run in runs)
        apart, apart_std = mean_and_std(run["distance"] for run in runs)
        passes = [i * WAYS[label].passes for i in at]
        lines["angle"].append(Line(label, at, degrees, [3 * s for s in degrees_std]))
        lines["distance"].append(Line(label, at, apart, [3 * s for s in apart_std]))
        lines["compute"].append(Line(label, passes, degrees, [3 * s for s in degrees_std]))
        for values in zip(at, passes, degrees, degrees_std, apart, apart_std, strict=True):
            keys = ("iteration", "passes", "angle", "angle_std", "distance", "distance_std")
            rows.append({"method": label, **dict(zip(keys, values, strict=True))})
    last = results["L-DRL, paper's solver"][0]["iteration"][-1]
    known = {i: a for i, a in PUBLISHED.items() if i <= last}
    if known:
        lines["angle"].append(
            Line(
                "published, L-DRL",
                list(known),
                list(known.values()),
                style={"marker": "o", "ls": ""},
            )
        )
        lines["angle"].append(
            Line(
                "published, DRL",
                [max(1, last // 2), last],
                [PUBLISHED_DRL] * 2,
                style={"marker": "s", "ls": ""},
            )
        )
    names = {
        "angle": ("angle of ω to θ", "iterations", "angle (degrees)"),
        "compute": (
            "the same against compute",
            "passes (products of the layer with the batch)",
            "angle (degrees)",
        ),
        "distance": ("relative distance", "iterations", "‖θ − ω‖/‖θ‖"),
    }
    shown = [
        Panel(*names[key], lines[key], "symlog", "log" if key == "distance" else "linear")
        for key in names
    ]
    draw_panels(shown, [place.folder / f"figure-4.2.{suffix}" for suffix in ("png", "pdf")], 3)
    write_csv(place.folder / "figure-4.2.csv", rows)
    settings = SCALES[place.scale]
    about = (
        f"LeNet on {settings['data']}, frozen random θ, one batch of 256 a seed, {listed(seeds)}; "
        "mean ± standard deviation of the angle between the output layer's ω and θᵀ, degrees. The "
        "paper's solver: SGD, lr 0.01, momentum 0.9, σ 0.1; DRL: DDTP-linear, Adam, lr 0.0045, σ "
        "0.0092, batch 128. Bands in the picture are three standard deviations, as published."
    )
    table = []
    for i in [
        *(i for i in (1, 5, 20) if i <= last),
        *known,
        *([last] if last not in known else []),
    ]:
        row = [str(i), str(known.get(i, "–"))]
        for runs in results.values():
            where = runs[0]["iteration"].index(i)
            (value,), (std,) = mean_and_std([run["angle"][where]] for run in runs)
            row.append(spread(value, std, len(runs)))
        table.append(row)
    write_markdown(
        place,
        "figure-4.2",
        "Figure 4.2: the output layer's feedback",
        about,
        ("iteration", "published, L-DRL", *results),
        table,
    )
