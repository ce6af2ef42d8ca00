"""The configuration of a run, from a preset or YAML file and command-line overrides."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from targetprop.training import files
from targetprop.training.check import check
from targetprop.training.files import FileError
from targetprop.training.sections import (
    Config,
    ConfigError,
    MemoryFormat,
    NetworkConfig,
    Precision,
    nearest,
    require,
)

__all__ = [
    "OPTIONS",
    "Config",
    "ConfigError",
    "MemoryFormat",
    "Precision",
    "build",
    "load",
    "nearest",
    "presets",
    "require",
]

OPTIONS = "network.options."
"""What the keys of a network's own options begin with."""


SECTIONS = [
    entry.name
    for entry in fields(Config)
    if callable(entry.default_factory) and is_dataclass(entry.default_factory())
]
"""The settings that are sections of others."""


def keys(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration."""
    for entry in fields(kind):
        made = entry.default_factory() if callable(entry.default_factory) else None
        if is_dataclass(made):
            yield from keys(type(made), f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested values; a section without any is none."""
    for key, value in values.items():
        if value is None and f"{prefix}{key}" in SECTIONS:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def place(name: str) -> Path:
    """The path called ``name``, in which ~ is a home.

    Raises:
        ConfigError: it is empty, of nobody here, or in no encoding that every library writes to.
    """
    if not name:
        raise ConfigError("a path is empty; give one, or leave the option out.")
    try:
        name.encode()
        return Path(name).expanduser()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name!a} is no UTF-8; give a path that is.") from error
    except RuntimeError as error:
        raise ConfigError(f"{name}: {str(error).rstrip('.')}; give a path.") from error


WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
"""Types as a user may know them."""


def expected(key: str) -> str:
    """What a setting may be, in words."""
    kind: Any = Config
    for part in key.split("."):
        kind = get_type_hints(kind)[part]
    return in_words(kind)


def in_words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    parts = get_args(kind)
    if parts and isinstance(get_origin(kind), type) and get_origin(kind) is not UnionType:
        word = in_words(parts[0]).rpartition(" ")[2]
        return f"a list of {word}s"
    if parts:
        known = [in_words(part) for part in parts if part is not type(None)]
        return " or ".join([*known, *(["null"] if type(None) in parts else [])])
    return WORDS.get(kind, str(kind))


def build(settings: Sequence[tuple[str, Any]]) -> Config:
    """A checked configuration from (dotted key, value) pairs; later ones win.

    Raises:
        ConfigError: an unknown key (with the nearest), a value of the wrong type or out of range.
    """
    from jsonargparse import ArgumentParser

    known = list(keys())
    options: dict[str, Any] = {}
    for key, value in settings:
        if key == OPTIONS[:-1]:
            given = files.parse_yaml(value, key) if isinstance(value, str) else value
            if not isinstance(given, dict):
                raise ConfigError(
                    f"network.options={value} is no mapping; write --network.options.KEY VALUE."
                )
            options |= given
        elif key.startswith(OPTIONS):
            options[key.removeprefix(OPTIONS)] = (
                files.parse_yaml(value, key) if isinstance(value, str) else value
            )
        elif key not in known:
            raise ConfigError(f"unknown key '{key}'; {nearest(key, known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    # A setting given twice would be parsed twice: only the last value counts.
    arguments = [
        f"--{key}={_text(value)}"
        for key, value in dict(settings).items()
        if not key.startswith(OPTIONS[:-1])
    ]
    try:
        parsed = parser.parse_args(arguments)
    except Exception:
        # jsonargparse raises argparse.ArgumentError, or what a type's constructor raises
        for argument in reversed(arguments):  # one by one, to name the setting at fault
            try:
                parser.parse_args([argument])
            except Exception as error:
                key, value = argument[2:].split("=", 1)
                raise ConfigError(
                    f"{key}={value} has the wrong type; expected {expected(key)}."
                ) from error
        raise
    made = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its older name
    try:
        config = Config(**vars(made(parsed)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    network = dataclasses.replace(config.network, options={**config.network.options, **options})
    where = config.data.dir and str(place(config.data.dir).absolute())
    data = dataclasses.replace(config.data, dir=where)  # found again from anywhere
    config = dataclasses.replace(config, network=network, data=data)
    check(config)
    return config


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Every preset by name: a task's common settings with those of one of its variants over it."""
    found = {}
    for file in sorted(
        resources.files("targetprop.presets").iterdir(), key=lambda entry: entry.name
    ):
        if file.name.endswith(".yaml"):
            task = files.parse_yaml(file.read_text(), file.name)
            for variant, settings in task["variants"].items():
                found[f"{file.name[:-5]}-{variant}"] = dict(
                    [*flat(task["common"]), *flat(settings or {})]
                )
    return found


def load(name: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
    """The configuration of a preset or YAML file, with overrides.

    Args:
        name: a preset, or the path of a YAML file; the file may name a ``preset`` to start from.
        overrides: (dotted key, value) pairs.

    Raises:
        ConfigError: no such preset (the nearest is named) or file, no YAML, or ``build`` refuses.
    """
    known = presets()
    if name in known:
        return build(layered(known[name].items(), overrides))
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"unknown preset '{name}'; {nearest(name, list(known))}")
    try:
        values = files.read_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no such file: {path}; give a YAML file or a preset ({', '.join(known)})."
        ) from error
    except FileError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected keys with values.")
    base = values.pop("preset", None)
    if base is not None and base not in known:
        raise ConfigError(f"unknown preset '{base}' in {path}; {nearest(str(base), list(known))}")
    return build(layered(known[base].items() if base else (), flat(values), overrides))


def layered(*sources: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The settings of all sources; naming a new network drops what earlier ones said of theirs."""
    settings: list[tuple[str, Any]] = []
    for source in map(list, sources):
        name, before = (
            dict(source).get("network.name"),
            dict(settings).get("network.name", NetworkConfig.name),
        )
        if name is not None and name != before:
            settings = [(key, value) for key, value in settings if not key.startswith("network.")]
        settings += source
    return settings
