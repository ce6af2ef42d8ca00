"""What a program says reaches a terminal, a pipe or a file of any encoding, or nobody."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any

GONE = {errno.EPIPE, errno.EIO, errno.ESHUTDOWN}
"""A pipe without a reader, a terminal that was closed."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Patient:
    """A stream whose reader may go away: what it is told then is lost, and the work goes on.

    Attributes:
        failed: why something could not be written though it has a reader: a full disk, say.
    """

    def __init__(self, stream: Any):
        """Write to ``stream`` as long as it takes it."""
        self.stream, self.failed = stream, None

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        self.attempt(self.stream.flush)

    def attempt(self, act: Callable[[], object]) -> None:
        """Act; a reader that is gone is nothing, another failure is kept for the end."""
        try:
            act()
        except ValueError:
            if not self.stream.closed:
                raise
        except OSError as error:
            if error.errno not in GONE:
                self.failed = error

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own."""
        return getattr(self.stream, name)


def settle() -> None:
    """Make standard output and error bear any text and any reader."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Patient):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
            setattr(sys, name, Patient(stream))


def unwritten() -> str | None:
    """Why part of what was said on standard output is not where it was sent, or None."""
    if not isinstance(sys.stdout, Patient):
        return None
    sys.stdout.flush()
    failed = sys.stdout.failed
    return failed and f"standard output could not be written whole: {failed.strerror}."


def width() -> int | None:
    """Of a line, where no terminal says it: a pipe gets names and numbers whole."""
    return None if "COLUMNS" in os.environ or sys.stdout.isatty() else 1000


def reopen() -> None:
    """Give streams that were closed before the program began (``>&-``) to nobody."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            setattr(sys, f"__{name}__", getattr(sys, name))


reopen()  # before anybody asks how wide a line is


def harmless(text: str) -> str:
    """The text, its control characters written out: a name may hold a terminal's commands."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
