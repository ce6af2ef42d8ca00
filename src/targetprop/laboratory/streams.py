"""Work beside the main queue of a GPU, and numbers read from it without making it wait. On a CPU both are plain calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Beside:
    """Runs independent pieces of work on streams of their own, each after all that was queued before it began.

    Example:
        >>> beside = Beside(device)
        >>> for layer in layers:
        ...     with beside.piece():
        ...         train(layer)
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


class Reading:
    """Named scalars on their way to the host in one copy; ``floats`` waits for that copy only, not for later work."""

    def __init__(self, values: Mapping[str, Tensor]):
        """Start to copy ``values``, all on one device."""
        self._names = tuple(values)
        self._event = None
        if values:
            stacked = torch.stack([value.detach() for value in values.values()])
            self._host = stacked.to("cpu", non_blocking=True)
            if stacked.is_cuda:
                self._event = torch.cuda.Event()
                self._event.record()

    def floats(self) -> dict[str, float]:
        """The values."""
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._host.tolist(), strict=True)) if self._names else {}
