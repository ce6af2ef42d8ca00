"""Signals that ask to stop, as numbers to look at between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that gets the number of SIGINT or SIGTERM instead of their breaking into a step."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, lambda n, _: received.append(n))
        yield received
    except ValueError:  # not the main thread: signals cannot be caught here, and need not be
        if before:
            raise
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
