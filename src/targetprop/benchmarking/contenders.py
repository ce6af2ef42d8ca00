"""What a benchmark times: algorithms on their own networks, and the batches that they are given."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targetprop.algorithms import LDRL, Backprop
from targetprop.attach import Feedback, attach
from targetprop.data import Batches, Dataset
from targetprop.feedback import SOLVERS, PredictiveSolver, ProbeSolver, SGDSolver
from targetprop.laboratory import networks
from targetprop.models import MODELS, CharGPT, plain
from targetprop.rules import RULES
from targetprop.training import config
from targetprop.training.build import build_model
from targetprop.training.config import ConfigError, MemoryFormat, Precision
from targetprop.training.device import layout, prepare, weight_dtype

PAPER_PRESETS = {"simple_vgg": "cifar10-vgg-ldrl-paper", "lenet": "cifar10-lenet-ldrl-paper"}

CONTENDERS = {
    "plain": "a plain PyTorch loop: the module and loss.backward()",
    "attach": "the same loop with feedback attached (targetprop.attach), tracking and probes "
    "included; by another rule or solver as in attach:sign_symmetry, attach:coupled, "
    "attach:untracked",
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
"""Plain modules to time; those of ``networks`` can pair too. "char_gpt" reads random characters."""

FAST, SLOW = (10, 1000), (1, 3)
"""(steps per turn, turns at most): ten steps hold one probe of every layer; "paper" takes long."""


@dataclass(frozen=True)
class Setting:
    """What the contenders train.

    Attributes:
        network: one of ``NETWORKS``, or ``package.module:make``.
        channels: its widths; default its own.
        batch_size: of training.
        options: of a model of ``targetprop.models`` or the user's own, as in a run's configuration.
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

    def __post_init__(self):
        """Refuse what nothing can be timed with.

        Raises:
            ConfigError: a setting out of range.
        """
        for name, value in (
            ("batch size", self.batch_size),
            ("threads", 1 if self.threads is None else self.threads),
            *(("channels", width) for width in self.channels or ()),
        ):
            if value < 1:
                raise ConfigError(f"{name} {value} is out of range; expected at least 1.")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr {self.lr} is out of range; expected a positive number.")


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
    usual = dataclasses.asdict(PredictiveSolver()) | {"tolerance": PredictiveSolver().limit}
    known = {name: type(value) for name, value in usual.items() if name != "tracking"}
    settings = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ConfigError(f"unknown solver setting '{key}'; {config.nearest(key, list(known))}")
        try:
            settings[key] = known[key](value)
        except ValueError as error:
            raise ConfigError(
                f"{key}={value} is not a number; write {key}={usual[key]}, say."
            ) from error
    return settings


def attach_settings(text: str) -> dict[str, Any]:
    """What ``attach`` is given: the rule or solver called ``text``, or no tracking.

    Raises:
        ConfigError: there is none of that name.
    """
    solvers = [name for name, kind in SOLVERS.items() if issubclass(kind, ProbeSolver)]
    if text in RULES:
        return {"rule": text}
    if text == "untracked":
        return {"solver": PredictiveSolver(tracking=False)}
    if text and text not in solvers:
        known = [*RULES, *solvers, "untracked"]
        raise ConfigError(f"unknown rule or solver '{text}'; {config.nearest(text, known)}")
    return {"solver": text} if text else {}


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """(contender, settings of its solver or of ``attach``).

    Raises:
        ConfigError: no such contender, or settings for one that has none.
    """
    kind, _, text = name.partition(":")
    if kind not in CONTENDERS:
        raise ConfigError(f"unknown contender '{kind}'; {config.nearest(kind, list(CONTENDERS))}")
    if kind == "attach":
        return kind, attach_settings(text)
    if text and kind not in ("ldrl", "untracked"):
        raise ConfigError(
            f"contender '{kind}' takes no settings, got '{text}'; attach, ldrl and untracked do."
        )
    return kind, solver_settings(text)


def contender(
    name: str, setting: Setting, in_shape: Sequence[int], classes: int, device: torch.device
) -> Contender:
    """The contender called ``name``, its weights drawn from seed 0.

    Raises:
        ConfigError: as ``split_name``, or the paper gives no settings for the network.
    """
    kind, settings = split_name(name)
    if kind == "paper" and setting.network not in PAPER_PRESETS:
        known = ", ".join(PAPER_PRESETS)
        raise ConfigError(
            f"the paper gives no solver settings for '{setting.network}'; "
            f"time 'paper' on {known} only."
        )
    if kind not in ("plain", "attach") and setting.network not in networks.NETWORKS:
        raise ConfigError(
            f"'{kind}' needs a paired network, got '{setting.network}'; "
            "time 'plain' and 'attach' on it."
        )
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
        feedback_of = None
        if kind == "attach":
            feedback_of = attach(net, *example(setting, in_shape, device), **settings)
            feedback_of.follow(optimizer)
        run = torch.compile(net, fullgraph=True) if setting.compiled else net
        return Contender(
            name,
            net if feedback_of else None,
            feedback_of,
            plain_step(run, optimizer, feedback_of),
            *FAST,
        )
    if kind == "backprop":
        algo: Any = Backprop(net)
    elif kind == "paper":
        chosen = config.load(PAPER_PRESETS[setting.network])
        paper_beta: dict[str, Any] = (
            {} if chosen.algorithm.beta is None else {"beta": chosen.algorithm.beta}
        )
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
            raise ConfigError(
                f"network '{name}' takes --channels, but no network.options; "
                f"got {', '.join(setting.options)}."
            )
        return NETWORKS[name](
            in_shape, classes, **({"channels": setting.channels} if setting.channels else {})
        )
    if ":" not in name and name not in MODELS:
        raise ConfigError(f"unknown network '{name}'; {config.nearest(name, list(NETWORKS))}")
    if setting.channels:
        raise ConfigError(
            f"--channels are those of paired networks, got '{name}'; "
            "give --network.options.KEY instead."
        )
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


def plain_step(
    net: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, feedback: Feedback | None
) -> Callable[[Tensor, Tensor], int]:
    """A training step as anyone writes it; it returns the probes that ``feedback`` made."""

    def step(x: Tensor, y: Tensor) -> int:
        optimizer.zero_grad()
        mean_loss(net, x, y).backward()
        optimizer.step()
        return sum(done.iterations for done in feedback.report.values()) if feedback else 0

    return step


def stream(
    setting: Setting, dataset: Dataset, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end, flipped and cropped, on the device."""
    if setting.network == "char_gpt":
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch_size, CONTEXT)
        drawn = (
            torch.randint(65, shape, generator=generator).to(device) for _ in itertools.count()
        )
        return ((x, x.roll(-1, 1)) for x in drawn)
    images = dataclasses.replace(
        dataset.train,
        images=dataset.train.images.to(device),
        labels=dataset.train.labels.to(device),
    )
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


def describe() -> str:
    """Every contender in a line."""
    return "; ".join(f"{name}: {about}" for name, about in CONTENDERS.items())
