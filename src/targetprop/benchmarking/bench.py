"""What a training step costs: algorithms interleaved, in steady training on real images.

Every contender trains its own copy of the network on the same batches. After a warm-up, which holds
the first batch's calibration of the feedback, they take turns, a block of steps each, so that a
slow spell of the machine meets all of them. Between the blocks, untimed, the angle of every layer's
update to the backprop gradient is measured. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from targetprop.algorithms import Backprop
from targetprop.analysis.alignment import alignment_of_grad, attached_alignment
from targetprop.attach import Feedback
from targetprop.benchmarking.contenders import (
    FAST,
    SLOW,
    Contender,
    Setting,
    contender,
    example,
    mean_loss,
    split_name,
    stream,
)
from targetprop.benchmarking.memory import peak_memory
from targetprop.benchmarking.report import Row, rows
from targetprop.data import Dataset
from targetprop.training.config import ConfigError
from targetprop.training.device import pick_device


def finish_queue(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turn(
    contender: Contender, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> float:
    """Seconds per step over ``batches``."""
    finish_queue(device)
    began = time.perf_counter()
    for x, y in batches:
        contender.iterations += contender.step(x, y)
    finish_queue(device)
    contender.steps += len(batches)
    return (time.perf_counter() - began) / len(batches)


Tell = Callable[[str, int], None]


def race(
    contenders: Sequence[Contender],
    setting: Setting,
    dataset: Dataset,
    warmup: int,
    steps: int,
    tell: Tell,
) -> None:
    """``warmup`` steps each, then the contenders by turns for ``steps``, angles measured between.

    A slow each warms up for one step. All see the same batches as far as they go.
    """
    device = pick_device(setting.device)
    feeds = [stream(setting, dataset, device) for _ in contenders]
    for each, feed in zip(contenders, feeds, strict=True):
        for x, y in itertools.islice(feed, warmup if each.block > 1 else 1):
            each.step(x, y)
            tell(each.name, 1)
        each.iterations = 0
    for taken in range(max(1, steps // FAST[0])):
        order = list(zip(contenders, feeds, strict=True))
        for each, feed in order if taken % 2 == 0 else order[::-1]:
            if taken >= each.turns:
                continue
            batches = list(itertools.islice(feed, each.block))
            each.times.append(turn(each, batches, device))
            tell(each.name, each.block)
            if each.net is not None and not isinstance(each.algo, Backprop):
                x, y = next(feed)
                if isinstance(each.algo, Feedback):
                    loss = partial(mean_loss, x=x, y=y)
                    found = attached_alignment(each.net, each.algo, loss)
                    each.angles.append([entry.update_angle for entry in found.values()])
                    continue
                each.net.zero_grad()
                each.algo.backward(x, y)
                aligned = alignment_of_grad(each.net, each.algo, x, y)
                each.angles.append([angle for angle, _ in aligned])


def bench(
    names: Sequence[str],
    setting: Setting,
    dataset: Dataset,
    warmup: int = 50,
    steps: int = 100,
    memory: bool = True,
    tell: Tell = lambda name, steps: None,
) -> list[Row]:
    """Time the contenders ``names`` on one setting.

    Args:
        names: see ``CONTENDERS``.
        setting: what they train.
        dataset: the images.
        warmup: untimed steps of each; the angles then are those of steady training.
        steps: timed steps of each, in turns of ten.
        memory: measure peak memory too, each contender in a process of its own.
        tell: called with (contender, steps done since) to show progress.

    Raises:
        ConfigError: an unknown contender or setting, before any work starts.
    """
    device = pick_device(setting.device)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    contenders = [
        contender(name, setting, dataset.in_shape, dataset.classes, device) for name in names
    ]
    race(contenders, setting, dataset, warmup, steps, tell)
    peaks = (
        {n: peak_memory(n, setting, dataset.in_shape, dataset.classes) for n in names}
        if memory
        else {}
    )
    return rows(contenders, peaks, setting.batch_size)


def check(names: Sequence[str], setting: Setting, dataset: Dataset) -> None:
    """Refuse unknown contenders and settings that do not fit, before any long work.

    Raises:
        ConfigError: one sentence.
    """
    device = pick_device(setting.device)
    if setting.batch_size > len(dataset.train):
        raise ConfigError(
            f"batch size {setting.batch_size} is more than the {len(dataset.train)} training "
            "images; give fewer."
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"contenders {', '.join(names)} name one twice; each runs once.")
    for name in names:
        try:
            net = contender(name, setting, dataset.in_shape, dataset.classes, device).net
            if net is not None:
                with torch.no_grad():
                    net(*example(setting, dataset.in_shape, device))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"'{name}' on {setting.network} does not fit images of shape {dataset.in_shape}: "
                f"{reason}"
            ) from error


def total_steps(names: Sequence[str], warmup: int, steps: int) -> int:
    """Steps of a whole bench, for its progress bar."""
    turns = max(1, steps // FAST[0])
    slow = sum(split_name(name)[0] == "paper" for name in names)
    return (len(names) - slow) * (warmup + turns * FAST[0]) + slow * (1 + min(turns, SLOW[1]))
