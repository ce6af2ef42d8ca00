"""What a program says reaches a terminal, a pipe or a file of any encoding, or nobody."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Patient:
    """A stream whose reader may go away: what it is told then is lost, and the work goes on."""

    def __init__(self, stream: Any):
        """Write to ``stream`` as long as it takes it."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        with contextlib.suppress(BrokenPipeError, OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        with contextlib.suppress(BrokenPipeError, OSError, ValueError):
            self.stream.flush()

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


def width() -> int | None:
    """Of a line, where no terminal says it: a pipe gets names and numbers whole."""
    return None if "COLUMNS" in os.environ or sys.stdout.isatty() else 1000


def harmless(text: str) -> str:
    """The text, its control characters written out: a name may hold a terminal's commands."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
