"""Numerical checks of the theory, in float64: how fast three errors vanish.

* The L-DRL loss over σ² tends to its small-noise limit, −2⟨ε, J_G J_F ε⟩ + ‖J_G η‖² (Ernoult et
  al. 2022), as σ².
* With ω = θᵀ the update of target propagation tends to the loss gradient as β, matched; mirror
  feedback leaves an error.
* The mismatch of the Jacobians falls with the iterations n of a solver: to rounding in one for the
  predictive solver; as √((d + 1)/(m·n)) for the correlation with d inputs and m samples of noise;
  to a floor for SGD.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from targetprop import data
from targetprop.algorithms import LDRL
from targetprop.analysis.alignment import backprop_gradients
from targetprop.analysis.figures import Line, Panel, draw_panels
from targetprop.experiments.cells import (
    Place,
    Result,
    mean_and_std,
    seed_by_seed,
    write_csv,
    write_markdown,
)
from targetprop.feedback import CorrelationSolver, Fixed, PredictiveSolver, SGDSolver, losses
from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import probe_of
from targetprop.laboratory import networks
from targetprop.laboratory.layers import Layer, Trace
from targetprop.laboratory.pairing import Network

SEEDS = (0, 1, 2)
SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3)
BETAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SCALES: dict[str, Result] = {
    "smoke": {"data": "digits", "batch": 64, "draws": 20, "iterations": 30},
    "cpu": {"data": "cifar10", "batch": 64, "draws": 50, "iterations": 200},
    "paper": {"data": "cifar10", "batch": 64, "draws": 50, "iterations": 200},
}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through (log x, log y)."""
    return statistics.linear_regression([math.log(a) for a in x], [math.log(b) for b in y]).slope


def batch(
    settings: Result, data_dir: str | None, seed: int
) -> tuple[Tensor, Tensor, tuple[int, ...], int]:
    """Standardised images and labels in float64, the images' shape and the number of classes."""
    dataset = data.load(settings["data"], data_dir)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[
        : settings["batch"]
    ]
    x = dataset.train.images[order].double()
    return (x - x.mean()) / x.std(), dataset.train.labels[order], dataset.in_shape, dataset.classes


@torch.no_grad()
def small_noise(settings: Result, data_dir: str | None, seed: int, activation: str) -> Result:
    """|mean of L/σ² − its limit| over σ for a hidden layer with mirror feedback.

    Noise comes in pairs ±(ε, η), the same for every σ: odd orders cancel, the slope is not blurred.
    """
    x, _, shape, classes = batch(settings, data_dir, seed)
    torch.manual_seed(seed)
    net = networks.mlp(shape, classes, (64, 64), activation, feedback="mirror").double()
    layer, trace = net.leaf_traces(net.trace(x)[1])[1]
    generator = torch.Generator().manual_seed(seed)
    draws = [
        tuple(
            torch.randn(a.shape, generator=generator, dtype=a.dtype)
            for a in (trace.input, trace.output)
        )
        for _ in range(settings["draws"])
    ]
    limit = sum(limit_of_loss(layer, trace, e, h) for e, h in draws) / len(draws)
    errors = []
    for sigma in SIGMAS:
        pairs = [(sign * sigma * e, sign * sigma * h) for e, h in draws for sign in (1, -1)]
        mean = sum(losses.ldrl(layer, trace, e, h)[0].item() for e, h in pairs) / len(pairs)
        errors.append(abs(mean / sigma**2 - limit))
    return {"errors": errors, "limit": limit, "slope": slope(SIGMAS, errors)}


def limit_of_loss(layer: Layer, trace: Trace, e: Tensor, h: Tensor) -> float:
    """−2⟨ε, J_G J_F ε⟩ + ‖J_G η‖², batch mean, by forward-mode derivatives of F and G."""

    def forward(x: Tensor) -> Tensor:
        return layer.trace(x).output

    def feedback(t: Tensor) -> Tensor:
        return layer.feed_back(layer.stage.lift(trace.saved, t), trace.input.shape)

    moved = torch.func.jvp(forward, (trace.input,), (e,))[1]
    back, of_output = (torch.func.jvp(feedback, (trace.output,), (v,))[1] for v in (moved, h))
    return ((-2 * (e * back).sum() + of_output.square().sum()) / len(e)).item()


def gradient_error(settings: Result, data_dir: str | None, seed: int, kind: str) -> Result:
    """‖∇ − ∇_BP‖/‖∇_BP‖ of all updates together over β, with ω = θᵀ, on LeNet with ELU."""
    x, y, shape, classes = batch(settings, data_dir, seed)
    torch.manual_seed(seed)
    net = networks.lenet(shape, classes, (8, 16, 32), feedback=kind).double()
    copy_forward(net)
    errors = []
    for beta in BETAS:
        algo = LDRL(net, beta, Fixed())
        net.zero_grad()
        algo.backward(x, y)
        pairs: Any = [
            (layer.theta.grad, g)
            for layer, g in zip(net.layers, backprop_gradients(net, algo, x, y), strict=True)
        ]
        apart = sum((u - g).square().sum().item() for u, g in pairs)
        errors.append((apart / sum(g.square().sum().item() for _, g in pairs)) ** 0.5)
    return {"errors": errors, "slope": slope(BETAS[:3], errors[:3])}


@torch.no_grad()
def copy_forward(net: Network) -> None:
    """ω = θ in every layer."""
    for layer in net.layers[1:]:
        layer.omega.copy_(layer.theta)


@torch.no_grad()
def mismatch(settings: Result, data_dir: str | None, seed: int) -> Result:
    """‖ω − θ‖/‖θ‖ of a convolution by iterations of each solver; the correlation's as predicted."""
    x, _, shape, classes = batch(settings, data_dir, seed)
    solvers = {
        "predictive": PredictiveSolver(tolerance=0.0, tracking=False),
        "correlation": CorrelationSolver(window=10**6, first_iterations=1),
        "paper's SGD": SGDSolver(noise=0.1, lr=1e-3, iterations=1),
    }
    found: Result = {}
    for name, solver in solvers.items():
        torch.manual_seed(seed)
        net = networks.simple_vgg(shape, classes, (8, 16)).double()
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        memory, generator = Memory(), torch.Generator().manual_seed(seed)
        found[name] = []
        for _ in range(settings["iterations"]):
            solver.train(0, layer, trace, memory, generator)
            found[name].append(((layer.omega - layer.theta).norm() / layer.theta.norm()).item())
        if name == "correlation":
            d, samples = layer.theta[0].numel(), len(probe_of(layer, trace).noise(0))
            found["predicted"] = [
                ((d + 1) / (samples * n)) ** 0.5 for n in range(1, settings["iterations"] + 1)
            ]
    return found


CHECKS: dict[str, Callable[[Result, str | None, int], Result]] = {
    "noise/tanh": partial(small_noise, activation="tanh"),
    "noise/elu": partial(small_noise, activation="elu"),
    "nudge/matched": partial(gradient_error, kind="matched"),
    "nudge/mirror": partial(gradient_error, kind="mirror"),
    "mismatch": mismatch,
}
"""Folder of a check's cells ↦ (settings, folder of the data, seed) ↦ result."""


def reproduce(place: Place) -> None:
    """``theory`` .csv, .png, .pdf and .md."""
    settings = SCALES[place.scale]

    def compute(check: str, seed: int, folder: Path) -> Result:
        return CHECKS[check](settings, place.data_dir, seed)

    for found, _ in seed_by_seed(place, place.choose(SEEDS), settings, CHECKS, compute):
        write(place, found)


def rows_of(
    check: str, case: str, x: Sequence[float], runs: Sequence[Sequence[float]]
) -> list[Result]:
    """A row per abscissa, of the mean over runs and its deviation."""
    means, stds = mean_and_std(runs)
    return [
        {"check": check, "case": case, "x": a, "error": e, "std": s}
        for a, e, s in zip(x, means, stds, strict=True)
    ]


def write(place: Place, found: dict[str, list[Result]]) -> None:
    """Pictures, CSV and the fitted slopes."""
    shown, table, rows = [], [], []
    settings = SCALES[place.scale]
    for title, check, xlabel, at, expected in (
        (
            "L-DRL loss / σ² less its small-noise limit",
            "noise",
            "σ",
            SIGMAS,
            {"tanh": "2", "elu": "2"},
        ),
        ("update less gradient, ω = θᵀ", "nudge", "β", BETAS, {"matched": "1", "mirror": "0"}),
    ):
        lines = []
        for label, wanted in expected.items():
            runs = found[f"{check}/{label}"]
            (fitted,), (std,) = mean_and_std([run["slope"]] for run in runs)
            of_label = rows_of(title, label, at, [run["errors"] for run in runs])
            lines.append(
                Line(f"{label}: slope {fitted:.2f}", at, [row["error"] for row in of_label])
            )
            table.append((title, label, f"{fitted:.2f} ± {std:.2f}", wanted))
            rows += of_label
        shown.append(Panel(title, xlabel, "error", lines, "log", "log"))
    lines, falls = [], found["mismatch"]
    at = list(range(1, settings["iterations"] + 1))
    for label in falls[0]:
        of_label = rows_of("mismatch", label, at, [fall[label] for fall in falls])
        style = {"ls": ":"} if label == "predicted" else {}
        errors = [row["error"] for row in of_label]
        shown_as = label if any(errors) else f"{label}: 0 from the first on"
        lines.append(Line(shown_as, at, errors, style=style))
        rows += of_label
    (mean,), (std,) = mean_and_std([fall["predictive"][0]] for fall in falls)
    table.append(("mismatch after one iteration", "predictive", f"{mean:.0e} ± {std:.0e}", "0"))
    slopes = [slope(at, fall["correlation"]) for fall in falls]
    (mean,), (std,) = mean_and_std([s] for s in slopes)
    table.append(("mismatch, slope", "correlation", f"{mean:.2f} ± {std:.2f}", "−0.5"))
    ratios = [
        sum(math.log(f / p) for f, p in zip(fall["correlation"], fall["predicted"], strict=True))
        for fall in falls
    ]
    (mean,), (std,) = mean_and_std([math.exp(r / len(falls[0]["predicted"]))] for r in ratios)
    table.append(("mismatch over the predicted", "correlation", f"{mean:.3f} ± {std:.3f}", "1"))
    shown.append(
        Panel(
            "mismatch of the Jacobians",
            "iterations",
            "‖A_ω − A_θ‖/‖A_θ‖",
            lines,
            "log",
            "log",
            1e-6,
        )
    )
    draw_panels(shown, [place.folder / f"theory.{suffix}" for suffix in ("png", "pdf")], 3)
    write_csv(place.folder / "theory.csv", rows)
    about = (
        f"float64, {settings['batch']} {settings['data']} images, {len(falls)} seeds. Loss: a "
        f"hidden layer of 64 units, mirror feedback, {settings['draws']} antithetic pairs of "
        "noise. Update: LeNet 8-16-32 with ELU, slope over the three smallest β. Mismatch: the "
        "second convolution of SimpleVGG 8-16."
    )
    write_markdown(
        place,
        "theory",
        "Checks of the theory",
        about,
        ("check", "case", "fitted", "expected"),
        table,
    )
