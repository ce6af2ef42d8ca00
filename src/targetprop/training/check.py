"""Settings out of range, or that would change nothing, are refused before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from targetprop.algorithms import ALGORITHMS, Algorithm, AttachedAlgorithm
from targetprop.feedback import SOLVERS, Fixed
from targetprop.laboratory.networks import NETWORKS
from targetprop.models import MODELS
from targetprop.training.sections import Config, ConfigError, NetworkConfig, nearest


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
        name, known = config.network.name, [*NETWORKS, *MODELS]
        if name not in known:
            hint = nearest(name, known).rstrip(".")
            raise ConfigError(
                f"unknown network.name '{name}'; {hint}; a model of yours is package.module:make."
            )
    plain = config.network.name not in NETWORKS
    changed = [
        f.name
        for f in fields(NetworkConfig)
        if f.name not in ("name", "options") and getattr(config.network, f.name) != f.default
    ]
    if plain and changed:
        raise ConfigError(
            f"network.{changed[0]} is a setting of paired networks ({', '.join(NETWORKS)}), got "
            f"network.name={config.network.name}; give --network.options.KEY instead."
        )
    if config.network.options and not plain:
        raise ConfigError(
            f"network '{config.network.name}' takes network.channels, network.activation, ..., but "
            f"no network.options; got {', '.join(config.network.options)}."
        )
    choice("data.name", config.data.name, list(SOURCES))
    choice("algorithm.name", config.algorithm.name, list(ALGORITHMS))
    if config.algorithm.solver is not None:
        choice("algorithm.solver", config.algorithm.solver, list(SOLVERS))
        if plain and not hasattr(SOLVERS[config.algorithm.solver], "probe"):
            able = ", ".join(name for name, kind in SOLVERS.items() if hasattr(kind, "probe"))
            raise ConfigError(
                f"algorithm.solver={config.algorithm.solver} needs a paired network; "
                f"a plain one takes {able}."
            )
        if not takes_solver(ALGORITHMS[config.algorithm.name]):
            raise ConfigError(
                f"algorithm '{config.algorithm.name}' takes no solver; drop algorithm.solver, "
                "or, where a preset sets it, give --algorithm.solver null."
            )
    if config.network.channels is not None:
        widths = config.network.channels
        demand(bool(widths) and min(widths) > 0, "network.channels", widths, "positive widths")
    data, optimizer = config.data, config.optimizer
    demand(data.batch_size > 0, "data.batch_size", data.batch_size, "at least 1")
    demand(0 <= data.validation < 1, "data.validation", data.validation, "a fraction in [0, 1)")
    demand(data.limit is None or data.limit > 0, "data.limit", data.limit, "at least 1")
    size = data.image_size
    demand(size is None or 0 < size <= 4096, "data.image_size", size, "1 to 4096 pixels")
    demand(0 <= config.seed < 2**63, "seed", config.seed, "0 to 2^63 - 1")
    floor, factor = config.schedule.minimum, config.schedule.factor
    demand(0 <= floor < float("inf"), "schedule.minimum", floor, "at least 0")
    demand(0 < factor < float("inf"), "schedule.factor", factor, "a positive number")
    demand(data.padding >= 0, "data.padding", data.padding, "at least 0")
    beta = config.algorithm.beta
    demand(beta is None or 0 < beta < float("inf"), "algorithm.beta", beta, "a positive number")
    demand(
        0 <= config.algorithm.label_smoothing < 1,
        "algorithm.label_smoothing",
        config.algorithm.label_smoothing,
        "[0, 1)",
    )
    demand(0 < optimizer.lr < float("inf"), "optimizer.lr", optimizer.lr, "a positive number")
    demand(
        0 <= optimizer.momentum < 1, "optimizer.momentum", optimizer.momentum, "a number in [0, 1)"
    )
    decay = optimizer.weight_decay
    demand(0 <= decay < float("inf"), "optimizer.weight_decay", decay, "at least 0, and finite")
    demand(config.epochs > 0, "epochs", config.epochs, "at least 1")
    demand(config.steps is None or config.steps > 0, "steps", config.steps, "at least 1")
    demand(config.log_every > 0, "log_every", config.log_every, "at least 1")
    demand(config.measure_every >= 0, "measure_every", config.measure_every, "at least 0")
    demand(config.checkpoint_every >= 0, "checkpoint_every", config.checkpoint_every, "at least 0")
    period = config.schedule.period
    demand(period is None or period > 0, "schedule.period", period, "at least 1")
    if config.schedule.name == "step" and period is None:
        raise ConfigError(
            "schedule.name=step needs schedule.period, the number of ticks between drops."
        )
    for setting, why in idle(config):
        raise ConfigError(f"{setting} would change nothing with {why}; leave it out.")


def takes_solver(kind: type[Algorithm]) -> bool:
    """Whether ω of an algorithm learn by a solver that can be chosen."""
    if issubclass(kind, AttachedAlgorithm):
        return kind.rule_type is not None and not isinstance(kind.rule_type().solver(), Fixed)
    return "solver" in inspect.signature(kind).parameters


def solver_name(config: Config) -> str | None:
    """The name of the solver that the algorithm runs with, whose section counts; else None."""
    kind: Any = ALGORITHMS[config.algorithm.name]
    if config.algorithm.solver is not None:
        return config.algorithm.solver
    if "solver" not in settings_of(kind):
        return None
    if issubclass(kind, AttachedAlgorithm):
        own = None if kind.rule_type is None else type(kind.rule_type().solver())
    else:
        own = getattr(kind, "default_solver", None)
    return next((name for name, solver in SOLVERS.items() if solver is own), None)


def settings_of(kind: type[Algorithm]) -> set[str]:
    """The names of what an algorithm can be told, the fields of its rule among them."""
    own = set(inspect.signature(kind.__init__).parameters)
    if issubclass(kind, AttachedAlgorithm) and kind.rule_type is not None:
        own |= {entry.name for entry in fields(kind.rule_type)}
    return own


def idle(config: Config) -> Iterator[tuple[str, str]]:
    """(key, why) of every setting that is not its default and would change nothing."""
    kind: Any = ALGORITHMS[config.algorithm.name]
    taken = settings_of(kind)
    name, solver = config.algorithm.name, solver_name(config)
    of_solver = f"algorithm '{name}'" if solver is None else f"solver '{solver}'"
    sections = [entry.name for entry in fields(Config) if entry.name in SOLVERS]
    groups: list[tuple[str, Any, set[str], str]] = [
        ("algorithm", config.algorithm, {"beta", "variant"} - taken, f"algorithm '{name}'"),
        (
            "drl",
            config.drl,
            {entry.name for entry in fields(config.drl)} - taken,
            f"algorithm '{name}'",
        ),
        *(
            (
                section,
                getattr(config, section),
                {entry.name for entry in fields(getattr(config, section))},
                of_solver,
            )
            for section in sections
            if section != solver
        ),
        (
            "optimizer",
            config.optimizer,
            {"momentum"} if config.optimizer.name != "sgd" else set(),
            config.optimizer.name,
        ),
        (
            "data",
            config.data,
            {"padding"} if config.data.augment == "none" else set(),
            "data.augment=none",
        ),
        (
            "data",
            config.data,
            {"image_size"} if config.data.name != "folder" else set(),
            f"data set '{config.data.name}'",
        ),
        (
            "schedule",
            config.schedule,
            {
                "constant": {"period", "minimum", "factor"},
                "cosine": {"factor"},
                "step": {"minimum"},
            }[config.schedule.name],
            f"schedule.name={config.schedule.name}",
        ),
    ]
    for section, values, unused, why in groups:
        default = type(values)()
        for key in sorted(unused):
            if getattr(values, key) != getattr(default, key):
                yield f"{section}.{key}={getattr(values, key)}", why
