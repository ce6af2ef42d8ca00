"""Reading what lies on disk: regular files of bounded size; YAML and JSON of plain values."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

SMALL = 2**20
"""Bytes of a configuration."""

MEDIUM = 2**26
"""Bytes of a result."""

LARGE = 2**31
"""Bytes of a table of metrics."""

DEEP = 50
"""Levels of nesting."""


class FileError(Exception):
    """A file that is not what it should be; the message names it, the fault and the remedy."""


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The content of a regular file; a FIFO or a device would keep its reader waiting for ever.

    Raises:
        FileNotFoundError: there is none.
        FileError: it is no regular file, larger than ``limit`` or not readable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:  # ENXIO of a socket, EACCES, ELOOP
        raise FileError(
            f"{path}: cannot be read ({error.strerror}); see what it is and who may read it."
        ) from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise FileError(f"{path}: is no regular file; move it away.")
        if found.st_size > limit:
            raise FileError(
                f"{path}: has {found.st_size} bytes, expected at most {limit}; is it what it says?"
            )
        with open(handle, "rb", closefd=False) as file:
            return file.read(found.st_size)
    finally:
        os.close(handle)


def read_text(path: Path, limit: int = SMALL) -> str:
    """Its text.

    Raises:
        FileError: as for bytes, or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: is no text in UTF-8 (byte {error.start}); save it as UTF-8."
        ) from error


def refuse(reason: str, mark: Any) -> NoReturn:
    """Stop reading YAML at ``mark``."""
    raise yaml.constructor.ConstructorError(None, None, reason, mark)


class PlainLoader(yaml.SafeLoader):
    """YAML of words, numbers, truth values, lists and mappings; no key twice, no aliases."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node no deeper than ``DEEP``; no alias, which could stand for a billion nodes."""
        if self.check_event(yaml.AliasEvent):
            refuse("aliases are not read; write the value out", self.peek_event().start_mark)
        if self.depth > DEEP:
            refuse(f"more than {DEEP} levels", self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def mapping(self, node: Any) -> dict[Any, Any]:
        """A mapping from words, each once."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value in seen:
                refuse(f"key {key.value!r} is not one word, once", key.start_mark)
            seen.add(key.value)
        return {str(key): value for key, value in self.construct_mapping(node, deep=True).items()}


def whole_number(loader: Any, node: Any) -> int:
    """An integer of no more digits than 64 bits have."""
    if len(node.value) > 20:
        refuse(f"a number of {len(node.value)} digits", node.start_mark)
    return yaml.SafeLoader.construct_yaml_int(loader, node)


def refused(loader: Any, node: Any) -> NoReturn:
    """A kind of value that no setting has."""
    refuse(f"a value of kind {node.tag.rsplit(':', 1)[-1]}", node.start_mark)


PlainLoader.add_constructor("tag:yaml.org,2002:int", whole_number)
PlainLoader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)
PlainLoader.add_constructor("tag:yaml.org,2002:map", PlainLoader.mapping)
for kind in ("binary", "set", "omap", "pairs"):
    PlainLoader.add_constructor(f"tag:yaml.org,2002:{kind}", refused)


def parse_yaml(text: str, name: Any) -> Any:
    """Plain values from YAML.

    Raises:
        FileError: it is none, or holds more than plain values; ``name`` says where it is from.
    """
    if len(text) > SMALL:
        raise FileError(f"{name}: has {len(text)} characters, expected at most {SMALL}.")
    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileError(f"{name}: cannot be read as YAML ({reason}).") from error


def read_yaml(path: Path) -> Any:
    """Plain values from a YAML file."""
    return parse_yaml(read_text(path), path)


def parse_json(text: str, name: Any) -> dict[str, Any]:
    """An object from JSON.

    Raises:
        FileError: it is none.
    """
    try:
        found = json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) <= 20 else math.inf
        )
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: is damaged ({' '.join(str(error).split())[:100]}).") from error
    if not isinstance(found, dict):
        raise FileError(f"{name}: holds {type(found).__name__}, expected an object.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file."""
    return parse_json(read_text(path, MEDIUM), path)


def rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Every line of a table of JSON objects as it stands, and its object; None if it holds none.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is no regular file.
    """
    for line in read_bytes(path, LARGE).split(b"\n"):
        if line:
            try:
                yield line + b"\n", parse_json(line.decode(), path)
            except (FileError, UnicodeDecodeError):
                yield line + b"\n", None
