"""The file of a study, and who works on it."""

from __future__ import annotations

import fcntl
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from targetprop.training import config
from targetprop.training.config import ConfigError
from targetprop.training.files import FileError
from targetprop.training.lock import locked

NAME, PREFIX = "targetprop", "sqlite:///"
"""Of the study in its file; of the address of such a file."""


def database(url: str) -> Path:
    """The file of a storage, which is a study, or is not there yet.

    Raises:
        ConfigError: the storage is none of SQLite.
        FileError: the file is something else.
    """
    if not url.startswith(PREFIX) or not url.removeprefix(PREFIX):
        raise ConfigError(f"--storage {url} is no SQLite file; write sqlite:///study.db.")
    if "?" in url or "%" in url:  # which SQLAlchemy reads as options and escapes
        raise ConfigError(f"--storage {url} has a ? or %; name the file without.")
    path = config.place(url.removeprefix(PREFIX))
    try:
        found = path.stat()
    except FileNotFoundError:
        return path
    remedy = "give another --storage"
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{path}: is no regular file; {remedy}.")
    if not found.st_size:
        return path  # a process was killed before it wrote a table, or the user made it
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise FileError(f"{path}: is no SQLite file; {remedy}.")
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=60)) as opened:
            names = {row[0] for row in opened.execute("SELECT name FROM sqlite_master")}
            if "studies" not in names or "trials" not in names:
                raise FileError(f"{path}: is a database, but holds no study; {remedy}.")
            studies = {row[0] for row in opened.execute("SELECT study_name FROM studies")}
    except sqlite3.Error as error:
        raise FileError(f"{path}: is damaged ({error}); {remedy}.") from error
    if studies - {NAME}:
        raise FileError(f"{path}: holds a study that 'targetprop tune' did not make; {remedy}.")
    return path


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process chooses a trial of the study in ``path``, and let none meanwhile.

    The lock is on a file beside it: closing a database's own file would drop SQLite's locks.
    """
    lock = path.with_name(f".{path.name}.lock")
    if lock.exists() and not lock.is_file():  # a FIFO would wait for ever
        raise FileError(f"{lock}: is no regular file; move it away.")
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder."""
    try:
        with locked(folder):
            return False
    except FileError:
        return True
