"""All that a run consists of while it runs, and its state as a checkpoint holds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from targetprop.algorithms import Algorithm
from targetprop.data import Batches
from targetprop.ranks import Ranks
from targetprop.training.checkpoint import CheckpointError
from targetprop.training.config import Config


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the current epoch, from 0.
        batch: batches of it that are done.
        step: steps done.
        seconds: spent in steps (backward and optimizer), without evaluation and measurements.
        best: the best validation accuracy so far; -1 before the first.

    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0


@dataclass
class Session:
    """All that a run consists of while it runs."""

    config: Config
    folder: Path
    net: nn.Module
    algo: Algorithm
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    train: Batches
    validation: Batches | None
    test: Batches
    progress: Progress
    ranks: Ranks

    @property
    def last_step(self) -> int:
        """Steps of the whole run."""
        full = self.config.epochs * len(self.train)
        return min(full, self.config.steps or full)

    def state(self) -> dict[str, Any]:
        """All that resuming needs, as tensors and plain values."""
        return {
            "config": self.config.to_dict(),
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "algorithm": self.algo.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Take up the state of a checkpoint."""
        load_weights(self.net, state, path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.algo.load_state_dict(state["algorithm"])
        self.progress = Progress(**state["progress"])


def load_weights(net: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into ``net``.

    Raises:
        CheckpointError: names or shapes differ.

    """
    try:
        net.load_state_dict(state["net"])
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: its weights do not fit this network ({reason}); "
            "use the run's own configuration."
        ) from error
