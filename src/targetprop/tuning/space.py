"""What is searched: dotted keys of the configuration, each with a range or choices."""

from __future__ import annotations

import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targetprop.training import config, files
from targetprop.training.config import OPTIONS, Config, ConfigError, nearest

HELD = {
    "seed": "all trials share the run's; give --seed",
    "data.name": "trials would be judged by different images",
    "data.dir": "trials would be judged by different images",
    "data.limit": "trials would be judged by different images",
    "data.image_size": "trials would be judged by different images",
    "data.validation": "trials would be judged by different images",
}
"""Keys that no study may tune, and why."""

CORNERS, LARGEST = 32, 10_000
"""Combinations of ends that are tried beforehand; points of a grid."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both among them.

    Attributes:
        low: the smallest.
        high: the largest.
        log: equally likely in their logarithms.
        step: from one to the next; None for all.
        points: of a grid, equally far apart (in logarithms if ``log``).
        whole: integers only.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    points: int | None = None
    whole: bool = False

    @property
    def ends(self) -> list[Any]:
        """What stands for all values where they are checked."""
        return [self.low, self.high]

    def record(self) -> dict[str, Any]:
        """As in a file."""
        own = {"low": self.low, "high": self.high, "log": self.log}
        return own | {k: v for k in ("step", "points") if (v := getattr(self, k)) is not None}

    def grid(self) -> list[Any] | None:
        """The values of a grid; None where nothing says how many."""
        if self.points is not None:
            parts = [i / (self.points - 1) for i in range(self.points)]
            ratio = self.high / self.low if self.log else 1.0
            inner = [
                self.low * ratio**t if self.log else self.low + (self.high - self.low) * t
                for t in parts[1:-1]
            ]
            found = [self.low, *inner, self.high]
            return list(dict.fromkeys(round(v) for v in found)) if self.whole else found
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step * (1 + 1e-12))
        return [self.low + i * step for i in range(min(count, LARGEST) + 1)]


@dataclass(frozen=True)
class Choices:
    """A few values of any kind."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> list[Any]:
        """All of them."""
        return list(self.values)

    def record(self) -> dict[str, Any]:
        """As in a file."""
        return {"choices": list(self.values)}

    def grid(self) -> list[Any]:
        """All of them."""
        return list(self.values)


Space = dict[str, Range | Choices]


def read(path: Path) -> Space:
    """The space in a YAML file.

    Raises:
        ConfigError: there is none, or ``parse`` refuses.
        FileError: it is no YAML.
    """
    try:
        values = files.read_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}; give a YAML file with --space.") from error
    return parse(values, str(path))


def parse(values: Any, name: str) -> Space:
    """A space from plain values; ``name`` says where they are from.

    Raises:
        ConfigError: an unknown key (with the nearest), a key that may not be tuned, or a range
            that is none.
    """
    if not isinstance(values, dict) or not values:
        what = "nothing" if not values else type(values).__name__
        raise ConfigError(
            f"{name} holds {what}, expected dotted keys with ranges, such as "
            "optimizer.lr: {low: 1e-4, high: 1e-1, log: true}."
        )
    known = list(config.keys())
    for key in values:
        if key in HELD:
            raise ConfigError(f"{name}: {key} cannot be tuned: {HELD[key]}.")
        if (key not in known and not key.startswith(OPTIONS)) or key in (OPTIONS, OPTIONS[:-1]):
            raise ConfigError(f"{name}: unknown key '{key}'; {nearest(key, known)}")
    return {key: entry(key, value, f"{name}: {key}") for key, value in values.items()}


def entry(key: str, value: Any, name: str) -> Range | Choices:
    """The range or the choices of one key.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, dict) or ("choices" in value) == ("low" in value or "high" in value):
        raise ConfigError(
            f"{name}={value} is no range; write {{low: A, high: B, log: true}} "
            "or {choices: [A, B]}."
        )
    words = ("choices",) if "choices" in value else ("low", "high", "log", "step", "points")
    for word in value:
        if word not in words:
            raise ConfigError(f"{name}: unknown '{word}'; {nearest(word, words)}")
    if "choices" in value:
        found = value["choices"]
        if not isinstance(found, list) or not found:
            raise ConfigError(f"{name}: choices={found} is out of range; expected a list of some.")
        found = [as_number(one) for one in found]
        if len({json.dumps(one) for one in found}) < len(found):
            raise ConfigError(f"{name}: choices={found} names one twice; leave one out.")
        return Choices(tuple(found))
    return ranged(key, value, name)


def ranged(key: str, value: Mapping[str, Any], name: str) -> Range:
    """The range of one key.

    Raises:
        ConfigError: an end is no number or missing, or they do not fit each other or the key.
    """

    def demand(fine: bool, word: str, expected: str) -> None:
        if not fine:
            raise ConfigError(
                f"{name}: {word}={value.get(word)} is out of range; expected {expected}."
            )

    given = {word: as_number(one) for word, one in value.items()}
    for word in ("low", "high", "step"):
        if word in given or word != "step":
            real = type(given.get(word)) in (int, float) and math.isfinite(given[word])
            demand(real, word, "a number")
    demand(type(given.get("log", False)) is bool, "log", "true or false")
    low, high, log, step = given["low"], given["high"], given.get("log", False), given.get("step")
    kinds = kinds_of(key) or {type(low), type(high), type(step or 0)}
    if not kinds & {int, float}:
        raise ConfigError(f"{name} takes no number; write {{choices: [A, B]}}.")
    whole = float not in kinds
    for word in ("low", "high", "step"):
        if whole and word in given:
            demand(given[word] == int(given[word]), word, "an integer")
    demand(low < high, "high", f"more than low={value['low']}")
    demand(not log or low > 0, "low", "a positive number, of which log: true takes the logarithm")
    demand(step is None or (0 < step <= high - low and not log), "step", "0 to high − low, no log")
    points = given.get("points")
    demand(
        points is None or (type(points) is int and 2 <= points <= LARGEST), "points", "2 or more"
    )
    number = int if whole else float
    return Range(number(low), number(high), log, step and number(step), points, whole)


def as_number(value: Any) -> Any:
    """The number that a text is: 1e-4, without a point, is text in YAML."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def kinds_of(key: str) -> set[type]:
    """The types that a key may have; empty for an option of a network, which may have any."""
    if key.startswith(OPTIONS):
        return set()
    kind: Any = Config
    for part in key.split("."):
        kind = typing.get_type_hints(kind)[part]
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return set(typing.get_args(kind)) if union else {kind}


def settled(base: Config, point: Mapping[str, Any]) -> Config:
    """The configuration with the values of a point, checked.

    Raises:
        ConfigError: as a whole it cannot be run.
    """
    return config.build(config.layered(config.flat(base.to_dict()), point.items()))


def check(space: Space, base: Config, name: str) -> None:
    """Refuse a space some of whose values no run could have.

    Raises:
        ConfigError: an end or a choice is refused, or ends that meet.
    """
    corners = [{key: end} for key, one in space.items() for end in one.ends]
    if math.prod(len(one.ends) for one in space.values()) <= CORNERS:
        corners = list(product({key: one.ends for key, one in space.items()}))
    for corner in corners:
        try:
            settled(base, corner)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error


def product(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last key changing fastest."""
    return [dict(zip(values, p, strict=True)) for p in itertools.product(*values.values())]


def grid(space: Space, name: str) -> list[dict[str, Any]]:
    """Every point of a grid.

    Raises:
        ConfigError: a range does not say how many, or there are too many.
    """
    values: dict[str, list[Any]] = {}
    for key, one in space.items():
        found = one.grid()
        if found is None:
            raise ConfigError(f"{name}: {key} has no grid; add points: 5, or give choices.")
        values[key] = found
    count = math.prod(map(len, values.values()))
    if count > LARGEST:
        raise ConfigError(f"{name}: a grid of {count} points, expected at most {LARGEST}.")
    return product(values)
