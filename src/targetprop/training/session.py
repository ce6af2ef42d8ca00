"""All that a run consists of while it runs, and its state as a checkpoint holds it."""

from __future__ import annotations

import dataclasses
import math
import warnings
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
        seconds: spent in steps (backward and optimizer), without evaluation and measurements, by
            the clock that the loop chooses.
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
    data: dict[str, Any]

    @property
    def last_step(self) -> int:
        """Steps of the whole run."""
        full = self.config.epochs * len(self.train)
        return min(full, self.config.steps or full)

    def state(self) -> dict[str, Any]:
        """All that resuming needs, as tensors and plain values."""
        return {
            "config": self.config.to_dict(),
            "data": self.data,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "algorithm": self.algo.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, state: dict[str, Any], path: Path, anew: bool = False) -> None:
        """Take up the state of a checkpoint.

        Args:
            state: of the checkpoint.
            path: of the checkpoint.
            anew: the rates are those of the present configuration, not of the state's.

        Raises:
            CheckpointError: a part of it does not belong to such a run, or to these data.
        """
        demand_same_data(self.data, state, path)
        load_weights(self.net, state, path)
        part = "progress"
        try:
            self.progress = progress_of(state["progress"], len(self.train))
            part = "optimizer"
            rates = [{k: v for k, v in g.items() if k != "params"} for g in self.groups]
            self.optimizer.load_state_dict(state["optimizer"])
            demand_fitting(self.optimizer)
            for group, own in zip(self.groups, rates, strict=True):
                demand_alike({key: group[key] for key in own}, own)
            part = "schedule"
            demand_alike(state["schedule"], self.schedule.state_dict())
            ticks = state["schedule"]["last_epoch"]
            if type(ticks) is not int or not 0 <= ticks <= self.progress.step + 1:
                raise ValueError(f"{ticks} ticks after {self.progress.step} steps")
            if anew:
                self.tick(rates, ticks)
            else:
                self.schedule.load_state_dict(state["schedule"])
            part = "algorithm"
            self.algo.load_state_dict(state["algorithm"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{path}: its {part} is not that of this run ({reason}); use another checkpoint."
            ) from error

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups."""
        return self.optimizer.param_groups

    def tick(self, rates: list[dict[str, Any]], ticks: int) -> None:
        """Give the optimizer the rates that this configuration has after ``ticks``."""
        for group, fresh in zip(self.groups, rates, strict=True):
            group.update(fresh)
        with warnings.catch_warnings():  # of ticks before steps: the steps are done
            warnings.simplefilter("ignore")
            for _ in range(ticks):
                self.schedule.step()


def demand_alike(value: Any, like: Any) -> None:
    """Raise ``ValueError`` where plain values are not of the kind of others, or not finite."""
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{str(value)[:60]} has other keys")
        for key in like:
            demand_alike(value[key], like[key])
    elif isinstance(like, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(like):
            raise ValueError(f"{str(value)[:60]} is no list of {len(like)}")
        for one, other in zip(value, like, strict=True):
            demand_alike(one, other)
    elif type(like) in (int, float):
        if type(value) not in (int, float) or not abs(value) < 2**53:
            raise ValueError(f"{str(value)[:60]} is no such number")
    elif type(value) is not type(like):
        raise ValueError(f"{str(value)[:60]} is {type(value).__name__}")


def progress_of(state: dict[str, Any], length: int) -> Progress:
    """Progress that can be, in epochs of ``length`` steps."""
    found = Progress(**state)
    counts = (found.epoch, found.batch, found.step)
    fine = all(type(n) is int and 0 <= n < 2**40 for n in counts)
    reals = (found.seconds, found.best)
    fine = fine and all(type(x) in (int, float) and math.isfinite(x) for x in reals)
    fine = fine and found.seconds >= 0 and -1 <= found.best <= 1
    if not fine or found.batch > length or found.step != found.epoch * length + found.batch:
        raise ValueError(f"{found} cannot be, in epochs of {length} steps")
    return found


def demand_fitting(optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` where a moment is not of its parameter's shape, or not finite."""
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment is None and name == "momentum_buffer":  # of a run without momentum so far
                continue
            shape = parameter.shape if name != "step" else torch.Size(())
            if not isinstance(moment, torch.Tensor) or moment.shape != shape:
                raise ValueError(f"{name} is no tensor of {tuple(shape)}")
            if not moment.isfinite().all() or (name == "step" and moment < 0):
                raise ValueError(f"{name} is not finite, or negative")


def demand_same_data(data: dict[str, Any], state: dict[str, Any], path: Path) -> None:
    """Refuse data that are not those a checkpoint was trained with.

    Raises:
        CheckpointError: they differ in classes, numbers, labels or pixels.
    """
    held = state.get("data", data)
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: holds no record of its data; use another checkpoint.")
    for key, now in data.items():
        before = str(held.get(key))  # whatever it is, it can be compared so
        if before != str(now):
            raise CheckpointError(
                f"{path}: the data are not those of the run: {key} was {before[:80]}, is {now}; "
                "put them back, or train anew."
            )


def load_weights(net: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into ``net``.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        own = net.state_dict()
        for name, value in state["net"].items():
            if name in own and value.dtype != own[name].dtype:
                raise ValueError(f"{name} is {value.dtype}, expected {own[name].dtype}")
            if name in own and value.shape != own[name].shape:
                raise ValueError(f"{name} is {tuple(value.shape)}")
            if not value.isfinite().all():
                raise ValueError(f"{name} is not finite")
        net.load_state_dict(state["net"])
    except (LookupError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: its weights do not fit this network ({reason}); "
            "use the run's own configuration."
        ) from error
