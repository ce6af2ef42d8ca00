"""Work beside the main queue of a GPU; on a CPU plain calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Beside:
    """Runs independent pieces of work on streams of their own, each after all queued before it.

    Example:
        >>> from targetprop.laboratory.streams import Beside
        >>> beside, found = Beside(torch.device("cpu")), []
        >>> for weight in torch.eye(2):
        ...     with beside.piece():
        ...         found.append(weight.sum())
        >>> beside.join()  # what is queued from here on waits for all pieces
    """

    def __init__(self, device: torch.device):
        """Start from what is queued on ``device`` now."""
        self._main = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._sides: list[torch.cuda.Stream] = []

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Queue what is called inside on a stream of its own."""
        if self._main is None:
            yield
            return
        side = torch.cuda.Stream(self._main.device)
        side.wait_stream(self._main)
        self._sides.append(side)
        with torch.cuda.stream(side):
            yield

    def join(self) -> None:
        """Let the main queue wait for every piece; the host does not."""
        if self._main is not None:
            for side in self._sides:
                self._main.wait_stream(side)
