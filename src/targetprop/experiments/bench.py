"""What a training step costs: algorithms side by side, interleaved, in steady training on real images.

Every contender trains its own copy of the network on the same batches. After a warm-up, which holds the first batch's
calibration of the feedback, they take turns, a block of steps each, so that a slow spell of the machine meets all of them.
Between the blocks, untimed, the angle of every layer's update to the backprop gradient is measured. Peak memory is that of a
process of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targetprop.algorithms import LDRL, Backprop
from targetprop.analysis.alignment import alignment_of_grad, attached_alignment
from targetprop.analysis.figures import draw_cost
from targetprop.analysis.tables import markdown, number
from targetprop.attach import Feedback, attach
from targetprop.data import Batches, Dataset
from targetprop.feedback import PredictiveSolver, SGDSolver
from targetprop.laboratory import networks
from targetprop.models import MODELS, CharGPT, plain
from targetprop.training import config
from targetprop.training.build import build_model
from targetprop.training.checkpoint import write_text
from targetprop.training.config import ConfigError, MemoryFormat, Precision
from targetprop.training.device import layout, pick_device, prepare, weight_dtype
from targetprop.training.logging import environment

PAPER_PRESETS = {"simple_vgg": "cifar10-vgg-ldrl-paper", "lenet": "cifar10-lenet-ldrl-paper"}
CONTENDERS = {
    "plain": "a plain PyTorch loop: the module and loss.backward()",
    "attach": "the same loop with feedback attached (targetprop.attach): tracking and probes included",
    "backprop": "Backprop of this library",
    "ldrl": "L-DRL, defaults; settings of its solver as in ldrl:tolerance=0.05,probe_every=20",
    "untracked": "L-DRL without tracking; settings likewise",
    "paper": "L-DRL with the paper's solver, settings and mirror feedback",
}


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **plain.NETWORKS,
    "resnet18_bn": partial(plain.resnet18, batch_norm=True),
    **MODELS,
    "char_gpt": lambda in_shape, classes: CharGPT(65),
}
"""Plain modules to time; those of ``targetprop.networks`` can be paired too. "char_gpt" reads random characters."""

FAST, SLOW = (10, 1000), (1, 3)
"""(steps per turn, turns at most): a turn of ten steps holds one probe of every layer; the paper's solver takes long."""


@dataclass(frozen=True)
class Setting:
    """What the contenders train.

    Attributes:
        network: one of ``NETWORKS``, or ``package.module:make``.
        channels: its widths; default its own.
        batch_size: of training.
        options: of a model of ``targetprop.models`` or of the user's own, as in the configuration of a run.
        compiled: "plain" and "attach" run through torch.compile.
        device: "auto", "cpu", "cuda", ...
        precision: as in the configuration of a run.
        memory_format: likewise.
        lr: learning rate of SGD with momentum 0.9 and weight decay 1e-4.
        threads: CPU threads; default torch's.

    """

    network: str = "simple_vgg"
    channels: tuple[int, ...] | None = None
    batch_size: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    device: str = "auto"
    precision: Precision = "float32"
    memory_format: MemoryFormat = "auto"
    lr: float = 0.05
    threads: int | None = None


@dataclass
class Contender:
    """One algorithm with its own network and optimizer.

    Attributes:
        name: as given.
        net: its network; None for the plain loop.
        algo: its algorithm, or the handle of an attached network.
        step: (x, y) ↦ one whole training step, returning iterations of its feedback solver.
        block: steps per turn.
        turns: how many turns it takes at most.
        times: seconds per step of each turn.
        angles: per measurement, degrees per layer.
        iterations: of the solver, summed over layers and timed steps.
        steps: timed.

    """

    name: str
    net: Any
    algo: Any
    step: Callable[[Tensor, Tensor], int]
    block: int
    turns: int
    times: list[float] = field(default_factory=list)
    angles: list[list[float]] = field(default_factory=list)
    iterations: int = 0
    steps: int = 0


def solver_settings(text: str) -> dict[str, Any]:
    """The settings in ``tolerance=0.05,probe_every=20``.

    Raises:
        ConfigError: an unknown setting, or a value that is no number.

    """
    known = {f.name: type(f.default) for f in dataclasses.fields(PredictiveSolver) if f.name not in ("patches", "tracking")}
    settings = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ConfigError(f"unknown solver setting '{key}'; {config.nearest(key, list(known))}")
        try:
            settings[key] = known[key](value)
        except ValueError as error:
            raise ConfigError(f"{key}={value} is not a number; write {key}={getattr(PredictiveSolver, key)}, say.") from error
    return settings


def split_name(name: str) -> tuple[str, str]:
    """(contender, settings of its solver).

    Raises:
        ConfigError: no such contender, or settings for one that has none.

    """
    kind, _, settings = name.partition(":")
    if kind not in CONTENDERS:
        raise ConfigError(f"unknown contender '{kind}'; {config.nearest(kind, list(CONTENDERS))}")
    if settings and kind not in ("ldrl", "untracked"):
        raise ConfigError(f"contender '{kind}' takes no settings, got '{settings}'; only ldrl and untracked do.")
    return kind, settings


def contender(name: str, setting: Setting, in_shape: Sequence[int], classes: int, device: torch.device) -> Contender:
    """The contender called ``name``, its weights drawn from seed 0.

    Raises:
        ConfigError: as ``split_name``, or the paper gives no settings for the network.

    """
    kind, text = split_name(name)
    settings = solver_settings(text)
    if kind == "paper" and setting.network not in PAPER_PRESETS:
        known = ", ".join(PAPER_PRESETS)
        raise ConfigError(f"the paper gives no solver settings for '{setting.network}'; time 'paper' on {known} only.")
    if kind not in ("plain", "attach") and setting.network not in networks.NETWORKS:
        raise ConfigError(f"'{kind}' needs a paired network, got '{setting.network}'; time 'plain' and 'attach' on it.")
    torch.manual_seed(0)
    if kind in ("plain", "attach"):
        made = plain_network(setting, in_shape, classes)
    else:
        widths: dict[str, Any] = {"channels": setting.channels} if setting.channels else {}
        feedback: dict[str, Any] = {"feedback": "mirror"} if kind == "paper" else {}
        made = networks.NETWORKS[setting.network](in_shape, classes, **widths, **feedback)
    net: Any = prepare(made, device, setting.precision, setting.memory_format)
    optimizer = torch.optim.SGD(net.parameters(), setting.lr, momentum=0.9, weight_decay=1e-4)
    if kind in ("plain", "attach"):
        feedback_of = attach(net, *example(setting, in_shape, device)) if kind == "attach" else None
        if feedback_of is not None:
            feedback_of.follow(optimizer)
        run = torch.compile(net, fullgraph=True) if setting.compiled else net
        return Contender(name, net if feedback_of else None, feedback_of, plain_step(run, optimizer), *FAST)
    if kind == "backprop":
        algo: Any = Backprop(net)
    elif kind == "paper":
        chosen = config.load(PAPER_PRESETS[setting.network])
        paper_beta: dict[str, Any] = {} if chosen.algorithm.beta is None else {"beta": chosen.algorithm.beta}
        algo = LDRL(net, solver=SGDSolver(**dataclasses.asdict(chosen.sgd)), **paper_beta)
    else:
        algo = LDRL(net, solver=PredictiveSolver(tracking=kind == "ldrl", **settings))

    def step(x: Tensor, y: Tensor) -> int:
        optimizer.zero_grad()
        report = algo.backward(x, y)
        optimizer.step()
        return sum(layer.iterations for layer in report.feedback.values())

    return Contender(name, net, algo, step, *(SLOW if kind == "paper" else FAST))


def plain_network(setting: Setting, in_shape: Sequence[int], classes: int) -> nn.Module:
    """The module to time, before it is paired or attached.

    Raises:
        ConfigError: there is none of that name, or it takes no such settings.

    """
    name = setting.network
    if name in NETWORKS and name not in MODELS:
        if setting.options:
            raise ConfigError(f"network '{name}' takes --channels, but no network.options; got {', '.join(setting.options)}.")
        return NETWORKS[name](in_shape, classes, **({"channels": setting.channels} if setting.channels else {}))
    if ":" not in name and name not in MODELS:
        raise ConfigError(f"unknown network '{name}'; {config.nearest(name, list(NETWORKS))}")
    if setting.channels:
        raise ConfigError(f"--channels are those of paired networks, got '{name}'; give --network.options.KEY instead.")
    chosen = config.build([("network.name", name), ("network.options", setting.options)])
    return build_model(chosen, in_shape, classes)


def example(setting: Setting, in_shape: Sequence[int], device: torch.device) -> tuple[Tensor]:
    """A batch of two like those it will train on."""
    if setting.network == "char_gpt":
        return (torch.zeros(2, CONTEXT, dtype=torch.long, device=device),)
    return (torch.zeros(2, *in_shape, dtype=weight_dtype(setting.precision), device=device),)


CONTEXT = 128
"""Characters of a sample of "char_gpt"."""


def mean_loss(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over samples, and over positions where every one has logits."""
    logits = net(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def plain_step(net: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], int]:
    """A training step as anyone writes it."""

    def step(x: Tensor, y: Tensor) -> int:
        optimizer.zero_grad()
        mean_loss(net, x, y).backward()
        optimizer.step()
        return 0

    return step


def stream(setting: Setting, dataset: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end, flipped and cropped, on the device."""
    if setting.network == "char_gpt":
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch_size, CONTEXT)
        drawn = (torch.randint(65, shape, generator=generator).to(device) for _ in itertools.count())
        return ((x, x.roll(-1, 1)) for x in drawn)
    images = dataclasses.replace(dataset.train, images=dataset.train.images.to(device), labels=dataset.train.labels.to(device))
    net = plain_network(setting, dataset.in_shape, dataset.classes)
    batches = Batches(
        images,
        dataset.mean,
        dataset.std,
        setting.batch_size,
        weight_dtype(setting.precision),
        "flip-crop",
        memory_format=layout(net, setting.memory_format),
    )
    return (batch for epoch in itertools.count() for batch in batches.epoch(epoch))


def finish_queue(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turn(contender: Contender, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Seconds per step over ``batches``."""
    finish_queue(device)
    began = time.perf_counter()
    for x, y in batches:
        contender.iterations += contender.step(x, y)
    finish_queue(device)
    contender.steps += len(batches)
    return (time.perf_counter() - began) / len(batches)


Tell = Callable[[str, int], None]


def race(contenders: Sequence[Contender], setting: Setting, dataset: Dataset, warmup: int, steps: int, tell: Tell) -> None:
    """Warm up for ``warmup`` steps each, then let the contenders take turns for ``steps`` steps, angles measured between.

    A slow contender warms up for one step. All see the same batches as far as they go.
    """
    device = pick_device(setting.device)
    feeds = [stream(setting, dataset, device) for _ in contenders]
    for contender, feed in zip(contenders, feeds, strict=True):
        for x, y in itertools.islice(feed, warmup if contender.block > 1 else 1):
            contender.step(x, y)
            tell(contender.name, 1)
        contender.iterations = 0
    for taken in range(max(1, steps // FAST[0])):
        order = list(zip(contenders, feeds, strict=True))
        for contender, feed in order if taken % 2 == 0 else order[::-1]:
            if taken >= contender.turns:
                continue
            batches = list(itertools.islice(feed, contender.block))
            contender.times.append(turn(contender, batches, device))
            tell(contender.name, contender.block)
            if contender.net is not None and not isinstance(contender.algo, Backprop):
                x, y = next(feed)
                if isinstance(contender.algo, Feedback):
                    loss = partial(mean_loss, x=x, y=y)
                    found = attached_alignment(contender.net, contender.algo, loss)
                    contender.angles.append([entry.update_angle for entry in found.values()])
                    continue
                contender.net.zero_grad()
                contender.algo.backward(x, y)
                aligned = alignment_of_grad(contender.net, contender.algo, x, y)
                contender.angles.append([angle for angle, _ in aligned])


def peak_memory(name: str, setting: Setting, in_shape: Sequence[int], classes: int, steps: int = 12) -> float | None:
    """MiB that building the contender and training it for ``steps`` steps adds to a new process, on random images.

    On CUDA, the most that torch's allocator held. None where the system does not tell.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, setting, tuple(in_shape), classes, steps))


def _peak_memory(name: str, setting: Setting, in_shape: tuple[int, ...], classes: int, steps: int) -> float | None:
    device = pick_device(setting.device)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    warm = torch.ones(1, 2, 8, 8)
    F.conv2d(warm, torch.ones(2, 2, 3, 3))  # loads the kernels' libraries
    before = peak_resident()
    contestant = contender(name, setting, in_shape, classes, device)
    if setting.network == "char_gpt":
        x = y = torch.randint(65, (setting.batch_size, CONTEXT), device=device)
    else:
        form = layout(plain_network(setting, in_shape, classes), setting.memory_format)
        x = torch.randn(setting.batch_size, *in_shape, dtype=weight_dtype(setting.precision), device=device)
        x, y = x.contiguous(memory_format=form), torch.randint(classes, (setting.batch_size,), device=device)
    for _ in range(steps if contestant.block > 1 else 1):
        contestant.step(x, y)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    after = peak_resident()
    return (after - before) / 2**10 if before and after else None


def peak_resident() -> int | None:
    """KiB that this process has held at most so far; None where /proc does not tell. (Its rusage holds the parent's peak.)"""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return None


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


def rows(contenders: Sequence[Contender], memory: dict[str, float | None], batch_size: int) -> list[Row]:
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


def bench(
    names: Sequence[str],
    setting: Setting,
    dataset: Dataset,
    warmup: int = 50,
    steps: int = 100,
    memory: bool = True,
    tell: Tell = lambda name, steps: None,
) -> list[Row]:
    """Time the contenders ``names`` on one setting.

    Args:
        names: see ``CONTENDERS``.
        setting: what they train.
        dataset: the images.
        warmup: untimed steps of each; the angles then are those of steady training.
        steps: timed steps of each, in turns of ten.
        memory: measure peak memory too, each contender in a process of its own.
        tell: called with (contender, steps done since) to show progress.

    Raises:
        ConfigError: an unknown contender or setting, before any work starts.

    """
    device = pick_device(setting.device)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    contenders = [contender(name, setting, dataset.in_shape, dataset.classes, device) for name in names]
    race(contenders, setting, dataset, warmup, steps, tell)
    peaks = {n: peak_memory(n, setting, dataset.in_shape, dataset.classes) for n in names} if memory else {}
    return rows(contenders, peaks, setting.batch_size)


def check(names: Sequence[str], setting: Setting, dataset: Dataset) -> None:
    """Refuse unknown contenders and settings that do not fit, before any long work.

    Raises:
        ConfigError: one sentence.

    """
    device = pick_device(setting.device)
    if len(set(names)) < len(names):
        raise ConfigError(f"contenders {', '.join(names)} name one twice; each runs once.")
    for name in names:
        try:
            net = contender(name, setting, dataset.in_shape, dataset.classes, device).net
            if net is not None:
                with torch.no_grad():
                    net(*example(setting, dataset.in_shape, device))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"'{name}' on {setting.network} does not fit images of shape {dataset.in_shape}: {reason}"
            ) from error


def total_steps(names: Sequence[str], warmup: int, steps: int) -> int:
    """Steps of a whole bench, for its progress bar."""
    turns = max(1, steps // FAST[0])
    slow = sum(split_name(name)[0] == "paper" for name in names)
    return (len(names) - slow) * (warmup + turns * FAST[0]) + slow * (1 + min(turns, SLOW[1]))


HEADINGS = ("contender", "ms a step", "quartiles", "images/s", "×", "peak MiB", "×", "angle max", "mean", "probes")


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


def describe() -> str:
    """Every contender in a line."""
    return "; ".join(f"{name}: {about}" for name, about in CONTENDERS.items())


def provenance(record: dict[str, Any]) -> str:
    """The command, commit, date and machine of a measurement, as Markdown."""
    where = f"{record['device']}, {record['threads']} threads"
    return f"`{record['command']}`\n\nCommit {record['commit']}, {record['date']}, torch {record['torch']}, {where}.\n"


def write(results: dict[str, list[Row]], settings: Sequence[Setting], warmup: int, out: Path) -> None:
    """Write ``bench.json``, ``bench.md`` and ``bench.png`` into the folder ``out``."""
    record = environment(pick_device(settings[0].device), 0)
    measured = [
        {"setting": dataclasses.asdict(s), "warmup": warmup, "rows": [dataclasses.asdict(r) for r in results[s.network]]}
        for s in settings
    ]
    write_text(out / "bench.json", json.dumps({"environment": record, "results": measured}, indent=2) + "\n")
    text = provenance(record)
    for setting in settings:
        text += f"\n## {setting.network}, batch {setting.batch_size}, {setting.precision}\n\n"
        text += markdown(HEADINGS, [cells(row) for row in results[setting.network]])
    write_text(out / "bench.md", text)
    points = {name: [dataclasses.asdict(r) for r in found if r.ratio is not None] for name, found in results.items()}
    if all(points.values()):
        draw_cost(points, out / "bench.png")
