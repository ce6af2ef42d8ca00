"""From a configuration to a session: data, network, algorithm, optimizer, schedule."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from targetprop import data
from targetprop.algorithms import ALGORITHMS, LDRL, Algorithm
from targetprop.algorithms.ldrl import AttachedLDRL
from targetprop.data import Batches, Dataset, Images
from targetprop.feedback import SOLVERS
from targetprop.laboratory import networks
from targetprop.laboratory.pairing import Network
from targetprop.models import MODELS
from targetprop.ranks import SINGLE, Group, Ranks
from targetprop.training.check import settings_of, solver_name
from targetprop.training.config import Config, ConfigError
from targetprop.training.device import layout, pick_device, prepare, weight_dtype
from targetprop.training.session import Progress, Session


def load_data(config: Config) -> Dataset:
    """The data set of a configuration."""
    dataset = data.load(config.data.name, config.data.dir, config.data.image_size)
    if config.data.limit:
        dataset = dataclasses.replace(dataset, train=dataset.train[slice(0, config.data.limit)])
    return dataset


def build_network(config: Config, dataset: Dataset) -> nn.Module:
    """The network for the data set's images, run once to see that they fit.

    Raises:
        ConfigError: they do not.
    """
    if config.network.name not in networks.NETWORKS:
        return build_model(config, dataset.in_shape, dataset.classes)
    chosen = {"channels": config.network.channels, "activation": config.network.activation}
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    make = networks.NETWORKS[config.network.name]
    if config.network.batch_norm:
        if "batch_norm" not in inspect.signature(make).parameters:
            raise ConfigError(
                f"network '{config.network.name}' has no batch normalisation; "
                "drop network.batch_norm."
            )
        given["batch_norm"] = True
    try:
        net = make(
            dataset.in_shape,
            dataset.classes,
            bias=config.network.bias,
            feedback=config.network.feedback,
            **given,
        )
        with torch.no_grad():
            net(torch.zeros(1, *dataset.in_shape))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"network '{config.network.name}' does not fit images of shape {dataset.in_shape}: "
            f"{reason}"
        ) from error
    return net


def maker(name: str) -> Callable[..., Any]:
    """The callable that ``package.module:make`` names, or one of the library's models.

    Raises:
        ConfigError: there is none.
    """
    if name in MODELS:
        return MODELS[name]
    module, _, attribute = name.partition(":")
    # stays there: the module may import others of that place when it runs
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's own code
        raise ConfigError(
            f"network.name={name} cannot be imported ({type(error).__name__}: {error}); "
            "write package.module:make, importable from the working directory."
        ) from error
    if not callable(made):
        raise ConfigError(
            f"network.name={name} is {type(made).__name__}; "
            "expected a callable make(in_shape, classes, ...)."
        )
    return made


def build_model(config: Config, in_shape: Sequence[int], classes: int) -> nn.Module:
    """A plain module, ours or the user's, run once to see that it gives logits.

    Raises:
        ConfigError: it cannot be made, or gives something else.
    """
    name, options = config.network.name, config.network.options
    make = maker(name)
    try:
        net = make(in_shape, classes, **options)
    except (Exception, SystemExit) as error:  # the user's own code
        given = ", ".join([str(in_shape), str(classes), *(f"{k}={v}" for k, v in options.items())])
        raise ConfigError(
            f"network '{name}' could not be made by make({given}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"network '{name}' made {type(net).__name__}, expected a torch.nn.Module."
        )
    mode = net.training
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, *in_shape))
    except (Exception, SystemExit) as error:  # the user's own code
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"network '{name}' does not fit images of shape {in_shape}: {reason}"
        ) from error
    net.train(mode)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise ConfigError(
            f"network '{name}' made {shape} of 2 images, expected logits (2, {classes}); "
            "return a tensor of one row a sample."
        )
    return net


def over(own: Any, section: Any) -> Any:
    """The solver of ``section``; where ``own`` is of its kind, that one with what it changes."""
    if type(own) is not type(section):
        return section
    default = type(section)()
    changed = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return dataclasses.replace(
        own, **{key: value for key, value in changed.items() if value != getattr(default, key)}
    )


def build_algorithm(config: Config, net: nn.Module, example: Tensor | None = None) -> Algorithm:
    """The algorithm with its solver; a plain module is attached by ``example``, two images."""
    settings, kind = config.algorithm, ALGORITHMS[config.algorithm.name]
    made: Any = AttachedLDRL if kind is LDRL and not isinstance(net, Network) else kind
    kwargs: dict[str, Any] = {
        "loss": settings.loss,
        "label_smoothing": settings.label_smoothing,
        "seed": config.seed,
    }
    kwargs |= {"variant": settings.variant, **dataclasses.asdict(config.drl)}
    if settings.beta is not None:
        kwargs["beta"] = settings.beta
    rule: Any = getattr(made, "rule_type", None)
    solver = solver_name(config)
    if solver is not None:
        section = getattr(config, solver, None) or SOLVERS[solver]()
        kwargs["solver"] = section if rule is None else over(rule().solver(), section)
    if rule is not None and example is not None:
        kwargs["example_inputs"] = (example,)
    kwargs = {key: value for key, value in kwargs.items() if key in settings_of(made)}
    try:
        return made(net, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def build_optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all weights; those without a gradient it leaves alone."""
    settings = config.optimizer
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if settings.name in kinds:
        return kinds[settings.name](
            net.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        net.parameters(),
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def build_schedule(config: Config, optimizer: torch.optim.Optimizer, steps: int, epochs: int):
    """The learning rate's schedule, ticked per step or epoch."""
    settings = config.schedule
    if settings.name == "cosine":
        period = settings.period or (steps if settings.unit == "step" else epochs)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period, settings.minimum)
    if settings.name == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, settings.period or 1, settings.factor)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)


def set_up(config: Config, folder: Path, ranks: Ranks = SINGLE) -> Session:
    """Build everything of a run; weights are drawn from the configuration's seed.

    Raises:
        ConfigError: the configuration cannot be run here.
    """
    device, dtype = pick_device(config.device), weight_dtype(config.dtype)
    dataset = load_data(config)
    if config.data.augment != "none" and config.data.padding > max(dataset.in_shape[1:]):
        raise ConfigError(
            f"data.padding={config.data.padding} is more than images of {dataset.in_shape[1]}×"
            f"{dataset.in_shape[2]} have pixels; give fewer."
        )
    torch.manual_seed(config.seed)
    net = build_network(config, dataset)
    form = layout(net, config.memory_format)
    net = prepare(net, device, config.dtype, config.memory_format)
    try:
        algo = build_algorithm(
            config, net, torch.zeros(2, *dataset.in_shape, dtype=dtype, device=device)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.compile != "off":
        algo.compile(config.compile)
    try:
        algo.distribute(ranks)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def batches(images: Images, peers: Group, augment: str = "none") -> Batches:
        moved = Images(images.images.to(device), images.labels.to(device))
        size, padding = config.data.batch_size, config.data.padding
        return Batches(
            moved,
            dataset.mean,
            dataset.std,
            size,
            dtype,
            augment,
            padding,
            config.seed,
            form,
            peers,
        )

    rest, held_out = data.split(dataset.train, config.data.validation)
    if not len(rest):
        raise ConfigError(
            f"data.validation={config.data.validation} leaves none of {len(dataset.train)} images "
            "to train with; give a smaller fraction."
        )
    size = min(config.data.batch_size, len(rest))
    if size % ranks.data.size:
        raise ConfigError(
            f"data.batch_size={size} cannot be split evenly over {ranks.data.size} processes; "
            "give a multiple of that."
        )
    train = batches(rest, ranks.data, config.data.augment)
    steps = min(config.epochs * len(train), config.steps or config.epochs * len(train))
    optimizer = build_optimizer(config, net)
    algo.follow(optimizer)
    schedule = build_schedule(config, optimizer, steps, config.epochs)
    validation = batches(held_out, ranks.world) if len(held_out) else None
    test = batches(dataset.test, ranks.world)
    return Session(
        config,
        folder,
        net,
        algo,
        optimizer,
        schedule,
        train,
        validation,
        test,
        Progress(),
        ranks,
        dataset.fingerprint,
    )
