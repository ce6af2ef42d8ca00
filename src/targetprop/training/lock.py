"""One process writes a run's folder at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from targetprop.training.files import FileError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made if need be, for this process.

    The system lets go of the lock when a process ends, however it ends: none is ever stale, and
    the file that carries it goes with its holder.

    Raises:
        FileError: another process holds it.
    """
    made = not folder.exists()
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = taken(path)
    except OSError as error:
        raise FileError(
            f"{folder} cannot be written ({error.strerror}); give another --out."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        if made and not any(folder.iterdir()):  # the work was refused before it began
            folder.rmdir()


def taken(path: Path) -> int:
    """The descriptor that holds ``path``; a file that its holder removed does not count."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise FileError(
                f"{path.parent} is written by another process; wait for it or give another --out."
            ) from error
        except OSError:  # a file system without locks
            return handle
        os.close(handle)
