"""The typed configuration of a run, from a preset or YAML file and command-line overrides."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from targetprop.algorithms import ALGORITHMS, Algorithm, Attached
from targetprop.feedback import (
    SOLVERS,
    AdamSolver,
    CorrelationSolver,
    CoupledSolver,
    Fixed,
    PredictiveSolver,
    ReconstructionSolver,
    SGDSolver,
)
from targetprop.laboratory.networks import NETWORKS
from targetprop.models import MODELS

Precision = Literal["float32", "float64", "tf32", "bfloat16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]


class ConfigError(Exception):
    """A configuration that cannot be run; the message names key, value and remedy."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network.

    Attributes:
        name: one of the networks, or ``package.module:make``, a callable ``make(in_shape, classes, **options)`` that can be
            imported from the working directory.
        options: keyword arguments of such a callable, ``--network.options.KEY VALUE``, and of "resnet20" and "vit".
        channels: widths of a paired network; default its own.
        activation: likewise.
        bias: likewise, biases in forward and feedback maps.
        batch_norm: batch normalisation, in paired ResNets.
        feedback: "matched" or "mirror", of paired networks.

    """

    name: str = "simple_vgg"
    options: dict[str, Any] = field(default_factory=dict)
    channels: list[int] | None = None
    activation: str | None = None
    bias: bool = True
    batch_norm: bool = False
    feedback: Literal["matched", "mirror"] = "matched"


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        name: of the data set.
        dir: where its files lie; default the cache folder.
        batch_size: of training.
        augment: of training images.
        padding: of random crops, in pixels.
        validation: fraction of the training images held out to select the best weights by; 0 keeps the last.
        limit: train on the first so many images only.
        image_size: size of the images of a folder.

    """

    name: str = "digits"
    dir: str | None = None
    batch_size: int = 128
    augment: Literal["none", "crop", "flip-crop"] = "none"
    padding: int = 4
    validation: float = 0.1
    limit: int | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class AlgorithmConfig:
    """The credit assignment rule.

    Attributes:
        name: one of the algorithms.
        beta: nudging strength of target propagation; default the algorithm's own, infinitesimal on plain modules.
        solver: how feedback is learned; its settings stand in the section of its name. Default the algorithm's own.
        loss: "cross_entropy" or "mse".
        label_smoothing: of the cross-entropy.
        variant: of sign symmetry.

    """

    name: str = "ldrl"
    beta: float | None = None
    solver: str | None = None
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    label_smoothing: float = 0.0
    variant: Literal["uSF", "brSF", "frSF"] = "uSF"


@dataclass(frozen=True)
class ReconstructConfig:
    """How DRL and DDTP-linear train their feedback; see their classes.

    Attributes:
        noise: σ.
        lr: of Adam on the feedback weights.
        iterations: per layer and batch.
        damping: λ, of DRL.
        weight_decay: of the feedback weights.
        schedule: "sequential" or "parallel".

    """

    noise: float = 0.01
    lr: float = 1e-3
    iterations: int = 1
    damping: float = 0.0
    weight_decay: float = 6e-5
    schedule: Literal["sequential", "parallel"] = "sequential"


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of the weights.

    Attributes:
        name: "sgd", "adam" or "adamw".
        lr: learning rate.
        momentum: of SGD.
        weight_decay: coupled L2; decoupled with "adamw".

    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time.

    Attributes:
        name: "constant", "cosine" or "step".
        unit: what counts as a tick, a "step" or an "epoch".
        period: ticks to the cosine's minimum (default the whole run), or between drops.
        minimum: the cosine's final learning rate.
        factor: of each drop.

    """

    name: Literal["constant", "cosine", "step"] = "cosine"
    unit: Literal["step", "epoch"] = "step"
    period: int | None = None
    minimum: float = 0.0
    factor: float = 0.1


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        epochs: to train.
        steps: stop after so many steps, even within an epoch.
        seed: of weights, order of images, augmentation and feedback noise.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32", "float64", "tf32" (float32 with TF32 products on NVIDIA GPUs) or "bfloat16" (products only).
        compile: mode of torch.compile for the passes of the algorithm; "off" runs them as they are.
        memory_format: of images and weights; "auto" lays channels innermost where torch bears it.
        log_every: steps between metrics.
        measure_every: steps between measurements of the angle to the backprop gradient, each costing a backprop step; 0 never.
        checkpoint_every: steps between checkpoints beside those at each epoch's end; 0 none.

    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    predictive: PredictiveSolver = field(default_factory=PredictiveSolver)
    coupled: CoupledSolver = field(default_factory=CoupledSolver)
    correlation: CorrelationSolver = field(default_factory=CorrelationSolver)
    sgd: SGDSolver = field(default_factory=SGDSolver)
    adam: AdamSolver = field(default_factory=AdamSolver)
    reconstruction: ReconstructionSolver = field(default_factory=ReconstructionSolver)
    drl: ReconstructConfig = field(default_factory=ReconstructConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    epochs: int = 10
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Precision = "float32"
    compile: Literal["off", "default", "max-autotune-no-cudagraphs"] = "off"
    memory_format: MemoryFormat = "auto"
    log_every: int = 10
    measure_every: int = 50
    checkpoint_every: int = 500

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


OPTIONS = "network.options."
"""What the keys of a network's own options begin with."""


def keys(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration."""
    for entry in fields(kind):
        made = entry.default_factory() if callable(entry.default_factory) else None
        if is_dataclass(made):
            yield from keys(type(made), f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest(word: str, known: Sequence[str]) -> str:
    """'; did you mean …?' with the known word most like ``word``, else the list of all."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."


def build(settings: Sequence[tuple[str, Any]]) -> Config:
    """A checked configuration from (dotted key, value) pairs; later ones win.

    Raises:
        ConfigError: an unknown key (with the nearest), a value of the wrong type, or one out of range.

    """
    from jsonargparse import ArgumentParser

    known = list(keys())
    options: dict[str, Any] = {}
    for key, value in settings:
        if key == OPTIONS[:-1]:
            given = yaml.safe_load(value) if isinstance(value, str) else value
            if not isinstance(given, dict):
                raise ConfigError(f"network.options={value} is no mapping; write --network.options.KEY VALUE.")
            options |= given
        elif key.startswith(OPTIONS):
            options[key.removeprefix(OPTIONS)] = yaml.safe_load(value) if isinstance(value, str) else value
        elif key not in known:
            raise ConfigError(f"unknown key '{key}'; {nearest(key, known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    # A setting given twice would be parsed twice: only the last value counts.
    arguments = [f"--{key}={_text(value)}" for key, value in dict(settings).items() if not key.startswith(OPTIONS[:-1])]
    try:
        parsed = parser.parse_args(arguments)
    except Exception:  # jsonargparse raises argparse.ArgumentError, or what a type's constructor raises
        for argument in arguments:  # one by one, to name the setting at fault
            try:
                parser.parse_args([argument])
            except Exception as error:
                key, value = argument[2:].split("=", 1)
                expected = str(error).split("Expected ")[-1].split(". Got")[0].replace("\n", " ").strip()
                raise ConfigError(f"{key}={value} has the wrong type; expected {expected}.") from error
        raise
    config = Config(**vars(parser.instantiate(parsed)))
    network = dataclasses.replace(config.network, options={**config.network.options, **options})
    config = dataclasses.replace(config, network=network)
    check(config)
    return config


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check(config: Config) -> None:
    """Refuse values out of range before any work starts."""

    def demand(fine: bool, key: str, value: Any, expected: str) -> None:
        if not fine:
            raise ConfigError(f"{key}={value} is out of range; expected {expected}.")

    def choice(key: str, value: str, known: Sequence[str]) -> None:
        if value not in known:
            raise ConfigError(f"unknown {key} '{value}'; {nearest(value, known)}")

    from targetprop.data import SOURCES

    if ":" not in config.network.name:
        choice("network.name", config.network.name, [*NETWORKS, *MODELS])
    plain = config.network.name not in NETWORKS
    changed = [
        f.name
        for f in fields(NetworkConfig)
        if f.name not in ("name", "options") and getattr(config.network, f.name) != f.default
    ]
    if plain and changed:
        raise ConfigError(
            f"network.{changed[0]} is a setting of paired networks ({', '.join(NETWORKS)}), got network.name="
            f"{config.network.name}; give --network.options.KEY instead."
        )
    if config.network.options and not plain:
        raise ConfigError(
            f"network '{config.network.name}' takes network.channels, network.activation, ..., but no network.options; got "
            f"{', '.join(config.network.options)}."
        )
    choice("data.name", config.data.name, list(SOURCES))
    choice("algorithm.name", config.algorithm.name, list(ALGORITHMS))
    if config.algorithm.solver is not None:
        choice("algorithm.solver", config.algorithm.solver, list(SOLVERS))
        if plain and not hasattr(SOLVERS[config.algorithm.solver], "probe"):
            able = ", ".join(name for name, kind in SOLVERS.items() if hasattr(kind, "probe"))
            raise ConfigError(f"algorithm.solver={config.algorithm.solver} needs a paired network; a plain one takes {able}.")
        if not takes_solver(ALGORITHMS[config.algorithm.name]):
            raise ConfigError(f"algorithm '{config.algorithm.name}' takes no solver; drop algorithm.solver.")
    if config.network.channels is not None:
        widths = config.network.channels
        demand(bool(widths) and min(widths) > 0, "network.channels", widths, "positive widths")
    data, optimizer = config.data, config.optimizer
    demand(data.batch_size > 0, "data.batch_size", data.batch_size, "at least 1")
    demand(0 <= data.validation < 1, "data.validation", data.validation, "a fraction in [0, 1)")
    demand(data.limit is None or data.limit > 0, "data.limit", data.limit, "at least 1")
    demand(data.padding >= 0, "data.padding", data.padding, "at least 0")
    beta = config.algorithm.beta
    demand(beta is None or beta > 0, "algorithm.beta", beta, "a positive number")
    demand(0 <= config.algorithm.label_smoothing < 1, "algorithm.label_smoothing", config.algorithm.label_smoothing, "[0, 1)")
    demand(optimizer.lr > 0, "optimizer.lr", optimizer.lr, "a positive number")
    demand(0 <= optimizer.momentum < 1, "optimizer.momentum", optimizer.momentum, "a number in [0, 1)")
    demand(optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "at least 0")
    demand(config.epochs > 0, "epochs", config.epochs, "at least 1")
    demand(config.steps is None or config.steps > 0, "steps", config.steps, "at least 1")
    demand(config.log_every > 0, "log_every", config.log_every, "at least 1")
    demand(config.measure_every >= 0, "measure_every", config.measure_every, "at least 0")
    demand(config.checkpoint_every >= 0, "checkpoint_every", config.checkpoint_every, "at least 0")
    period = config.schedule.period
    demand(period is None or period > 0, "schedule.period", period, "at least 1")
    if config.schedule.name == "step" and period is None:
        raise ConfigError("schedule.name=step needs schedule.period, the number of ticks between drops.")


def presets() -> dict[str, dict[str, Any]]:
    """Every preset by name: a task's common settings with those of one of its variants over them."""
    found = {}
    for file in sorted(resources.files("targetprop.presets").iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            task = yaml.safe_load(file.read_text())
            for variant, settings in task["variants"].items():
                found[f"{file.name[:-5]}-{variant}"] = dict([*flat(task["common"]), *flat(settings or {})])
    return found


def load(name: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
    """The configuration of a preset or YAML file, with overrides.

    Args:
        name: a preset, or the path of a YAML file; the file may name a ``preset`` to start from.
        overrides: (dotted key, value) pairs.

    Raises:
        ConfigError: no such preset (with the nearest name) or file, a file that is not YAML, or what ``build`` refuses.

    """
    known = presets()
    if name in known:
        return build(layered(known[name].items(), overrides))
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"unknown preset '{name}'; {nearest(name, list(known))}")
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}; give a YAML file or a preset ({', '.join(known)}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected keys with values.")
    base = values.pop("preset", None)
    if base is not None and base not in known:
        raise ConfigError(f"unknown preset '{base}' in {path}; {nearest(str(base), list(known))}")
    return build(layered(known[base].items() if base else (), flat(values), overrides))


def layered(*sources: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The settings of all sources; one that names another network drops what earlier ones said of theirs."""
    settings: list[tuple[str, Any]] = []
    for source in map(list, sources):
        name, before = dict(source).get("network.name"), dict(settings).get("network.name", NetworkConfig.name)
        if name is not None and name != before:
            settings = [(key, value) for key, value in settings if not key.startswith("network.")]
        settings += source
    return settings


def takes_solver(kind: type[Algorithm]) -> bool:
    """Whether ω of an algorithm learn by a solver that can be chosen."""
    if issubclass(kind, Attached):
        return kind.rule_type is not None and not isinstance(kind.rule_type().solver(), Fixed)
    return "solver" in inspect.signature(kind).parameters
