"""Figure 4.3 of Ernoult et al. (2022): does every layer's update follow the loss gradient?

LeNet without biases, frozen random forward weights, one batch a seed; the feedback weights learn on
that batch, then the angle of each layer's update to the backprop gradient is measured. The paper's
conditions all use mirror feedback; matched feedback with each solver stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from targetprop.algorithms import LDRL, Algorithm, DDTPLinear
from targetprop.analysis.alignment import (
    backprop_gradients,
    distance,
    standing_updates,
    update_alignment,
)
from targetprop.analysis.figures import draw_bars
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
from targetprop.feedback import (
    CorrelationSolver,
    Fixed,
    PredictiveSolver,
    SGDSolver,
    Solver,
    Symmetric,
)
from targetprop.feedback.memory import Memory
from targetprop.laboratory.layers import Layer, Trace
from targetprop.laboratory.pairing import Network
from targetprop.training import checkpoint

SEEDS = (123, 124, 125, 126, 127)
BETA = 0.4655
ETA = 0.0159621
"""Step of the published DRL's targets: with random feedback its distances follow from it, not β."""
LAYERS = ("conv_0", "conv_1", "fc_2", "fc_3")
SCALES: dict[str, Result] = {
    "smoke": {"data": "digits", "iterations": 30, "drl_iterations": 30},
    "cpu": {"data": "cifar10", "iterations": 5000, "drl_iterations": 5000},
    "paper": {"data": "cifar10", "iterations": 5000, "drl_iterations": 5000},
}
PUBLISHED = {
    "DRL, random": (90.0, 89.6, 89.4, 1.3),
    "L-DRL, random": (87.1, 90.0, 89.6, 0.0),
    "DRL, trained": (84.6, 83.0, 13.4, 1.3),
    "L-DRL, paper's solver": (33.4, 8.0, 2.4, 0.0),
    "L-DRL, symmetric": (23.6, 2.1, 0.0, 0.0),
}
"""Degrees per layer (PAPER-DETAILS 6.3)."""
MEASURED = ", measured as published"


@dataclass(frozen=True)
class Condition:
    """How the feedback of L-DRL comes about.

    Attributes:
        kind: "matched" or "mirror".
        solver: one call is one iteration, or all there is to do.
        iterations: calls per layer; None for those of the scale.
        beta: β.
        dtype: of everything.
    """

    kind: str
    solver: Solver
    iterations: int | None = None
    beta: float = BETA
    dtype: torch.dtype = torch.float32


paper = SGDSolver(noise=(0.2, 0.2, 0.1), lr=(1e-4, 2.5e-3, 1e-2), iterations=1, momentum=0.9)
ours = PredictiveSolver(tolerance=0.02, tracking=False)
CONDITIONS: dict[str, Condition | None] = {
    "DRL, random": None,
    "L-DRL, random": Condition("mirror", Fixed(), 0),
    "DRL, trained": None,
    "L-DRL, paper's solver": Condition("mirror", paper),
    "L-DRL, symmetric": Condition("mirror", Symmetric(), 1),
    "predictive, mirror": Condition("mirror", ours, 1),
    "correlation, matched": Condition(
        "matched", CorrelationSolver(window=10**6, first_iterations=1), 1000
    ),
    "predictive, matched": Condition("matched", ours, 1),
    "predictive, matched, β = 0.1": Condition("matched", ours, 1, 0.1),
    "symmetric, matched": Condition("matched", Symmetric(), 1),
    "symmetric, matched, β = 1e-6": Condition("matched", Symmetric(), 1, 1e-6, torch.float64),
}
"""None: DDTP-linear, what the paper calls DRL."""


@torch.no_grad()
def train_layer(
    folder: Path,
    index: int,
    solver: Solver,
    layer: Layer,
    trace: Trace,
    iterations: int,
    seed: int,
    tell=lambda done: None,
) -> None:
    """So many calls of the solver on one layer and batch, with a checkpoint every 250."""
    path = folder / f"layer-{index}.pt"
    generator, memory, done = torch.Generator().manual_seed(seed + index), Memory(), 0
    if path.exists():
        kept = checkpoint.load(path)
        layer.omega.copy_(kept["omega"])
        memory.load_state_dict(kept["memory"], {layer.omega.numel()})
        done = kept["done"]
        generator.set_state(kept["generator"])
    while done < iterations:
        solver.train(index, layer, trace, memory, generator)
        done += 1
        if done % 250 == 0:
            kept = {
                "omega": layer.omega.data,
                "memory": memory.state_dict(),
                "generator": generator.get_state(),
                "done": done,
            }
            checkpoint.save(path, kept)
            tell(done)


def step(net: Network, algo: Algorithm, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's update, and the backprop gradient of the mean loss."""
    net.zero_grad()
    algo.backward(x, y)
    return standing_updates(net), backprop_gradients(net, algo, x, y)


def aligned(updates: list[Tensor], gradients: list[Tensor]) -> Result:
    """Angle and relative distance of every update to its gradient."""
    found = update_alignment(updates, gradients)
    return {"angle": [a for a, _ in found], "distance": [d for _, d in found]}


def aligned_as_published(
    updates: Sequence[Tensor], gradients: Sequence[Tensor], units: Sequence[int], batch: int
) -> Result:
    """The same for DRL, measured as the published code does (PAPER-DETAILS 6.1, 6.3, 8).

    The update keeps the size that its local loss gives it, u·2η/(βBm), small beside the 1e-8:

        angle = acos(⟨u, g⟩/(‖u‖‖g‖ + 1e-8)),     distance = ‖u − g‖/‖u‖

    Args:
        updates: of DRL, a step β of the targets being divided out.
        gradients: g, of backprop.
        units: m per layer: a convolution's outputs, the published loss being their mean; else 1.
        batch: B.
    """
    found: Result = {"angle": [], "distance": []}
    for update, g, m in zip(updates, gradients, units, strict=True):
        u, g = update.double() * (2 * ETA / (BETA * batch * m)), g.double()
        found["angle"].append(math.degrees(math.acos((u * g).sum() / (u.norm() * g.norm() + 1e-8))))
        found["distance"].append(distance(u, g).item())
    return found


def measure_ldrl(place: Place, folder: Path, label: str, seed: int, settings: Result) -> Result:
    """Train the feedback of a condition of L-DRL and measure the updates."""
    condition = CONDITIONS[label]
    assert condition is not None
    net, (x, y) = lenet_batch(
        settings["data"], place.data_dir, seed, False, condition.kind, "flip-crop"
    )
    net, x = net.to(condition.dtype), x.to(condition.dtype)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
    iterations = (
        settings["iterations"]
        if condition.iterations is None
        else min(condition.iterations, settings["iterations"])
    )
    for index, (layer, trace) in enumerate(leaves[1:]):

        def tell(done: int, index: int = index) -> None:
            place.tell(f"{label}, seed {seed}, layer {index + 1}, iteration {done}")

        train_layer(folder, index, condition.solver, layer, trace, iterations, seed, tell)
    return aligned(*step(net, LDRL(net, condition.beta, Fixed()), x, y))


def measure_drl(place: Place, folder: Path, trained: bool, seed: int, settings: Result) -> Result:
    """The same for DDTP-linear; feedback descends each layer's reconstruction loss on the batch."""
    net, (x, y) = lenet_batch(settings["data"], place.data_dir, seed, False, "mirror", "flip-crop")
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
    algo = DDTPLinear(net, BETA, 0.0092104, 0.00451575, 0, seed=seed)
    path = folder / "directs.pt"
    done = 0
    if path.exists():
        kept = checkpoint.load(path)
        done = kept["done"]
        algo.load_state_dict(kept["algorithm"])
    iterations = settings["drl_iterations"] if trained else 0
    while done < iterations:
        with torch.no_grad():
            for i, (_, trace) in enumerate(leaves[:-1]):
                # their loss is the mean over units: weight decay counts for more
                algo.weight_decay = 6.1693e-5 * trace.output[0].numel()
                algo.reconstruct(i, leaves)
        done += 1
        if done % 250 == 0:
            checkpoint.save(path, {"algorithm": algo.state_dict(), "done": done})
            place.tell(f"DRL, seed {seed}, iteration {done}")
    updates, gradients = step(net, algo, x, y)
    units = [trace.output[0].numel() if layer.theta.ndim == 4 else 1 for layer, trace in leaves]
    published = aligned_as_published(updates, gradients, units, len(x))
    return {**aligned(updates, gradients), "published": published}


def reproduce(place: Place) -> None:
    """Compute what is missing, and write CSV, pictures and a table, anew after each seed."""
    settings = SCALES[place.scale]

    def compute(label: str, seed: int, folder: Path) -> Result:
        if CONDITIONS[label] is None:
            return measure_drl(place, folder, label == "DRL, trained", seed, settings)
        return measure_ldrl(place, folder, label, seed, settings)

    for results, seeds in seed_by_seed(place, place.choose(SEEDS), settings, CONDITIONS, compute):
        write(place, results, seeds)


def with_published_measure(results: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """Each condition's results and, of DRL's, those measured as published, beside them."""
    found: dict[str, list[Result]] = {}
    for label, runs in results.items():
        found[label] = runs
        if "published" in runs[0]:
            found[label + MEASURED] = [run["published"] for run in runs]
    return found


def write(place: Place, results: dict[str, list[Result]], seeds: Sequence[int]) -> None:
    """``figure-4.3`` as .csv, .png, .pdf and .md."""
    means, stds, published, rows, table = {}, {}, {}, [], []
    for label, runs in with_published_measure(results).items():
        means[label], stds[label] = mean_and_std(run["angle"] for run in runs)
        apart, apart_std = mean_and_std(run["distance"] for run in runs)
        for values in zip(LAYERS, means[label], stds[label], apart, apart_std, strict=True):
            keys = ("layer", "angle", "angle_std", "distance", "distance_std")
            rows.append({"condition": label, **dict(zip(keys, values, strict=True))})
        shown = [spread(a, s, len(runs)) for a, s in zip(means[label], stds[label], strict=True)]
        known = PUBLISHED.get(label.removesuffix(MEASURED))
        if known:
            published[label] = known
        table.append((label, "/".join(f"{a:g}" for a in known) if known else "–", *shown))
    paths = [place.folder / f"figure-4.3.{suffix}" for suffix in ("png", "pdf")]
    draw_bars(LAYERS, means, stds, published, "angle to the backprop gradient (degrees)", paths)
    write_csv(place.folder / "figure-4.3.csv", rows)
    settings = SCALES[place.scale]
    about = (
        f"LeNet without biases on {settings['data']}, ELU, frozen random θ, one augmented batch of "
        f"256 a seed, β {BETA} where not stated, {listed(seeds)}. Angle between each layer's "
        "update and the backprop gradient of the mean loss, degrees, mean ± standard deviation. "
        f"The paper's solver: {settings['iterations']} iterations a layer, σ 0.2 0.2 0.1, lr 1e-4 "
        "2.5e-3 1e-2, momentum 0.9. DRL: DDTP-linear, Adam; measured as published, an update keeps "
        f"the size that its local loss and targets of step {ETA} give it, and 1e-8 is added to the "
        "denominator of the cosine. Predictive: tolerance 0.02. Mirror feedback where not stated."
    )
    headings = ("condition", "published " + "/".join(LAYERS), *LAYERS)
    write_markdown(
        place, "figure-4.3", "Figure 4.3: the updates of every layer", about, headings, table
    )
