"""Peak memory of a contender, in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from targetprop.benchmarking.contenders import CONTEXT, Setting, contender, plain_network
from targetprop.training.device import layout, pick_device, weight_dtype


def peak_memory(
    name: str, setting: Setting, in_shape: Sequence[int], classes: int, steps: int = 12
) -> float | None:
    """MiB that building a contender and ``steps`` steps on random images add to a new process.

    On CUDA, the most that torch's allocator held. None where the system does not tell.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, setting, tuple(in_shape), classes, steps))


def _peak_memory(
    name: str, setting: Setting, in_shape: tuple[int, ...], classes: int, steps: int
) -> float | None:
    device = pick_device(setting.device)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    warm = torch.ones(1, 2, 8, 8)
    F.conv2d(warm, torch.ones(2, 2, 3, 3))  # loads the kernels' libraries
    before = peak_resident()
    contestant = contender(name, setting, in_shape, classes, device)
    if setting.network == "char_gpt":
        x = y = torch.randint(65, (setting.batch_size, CONTEXT), device=device)
    else:
        form = layout(plain_network(setting, in_shape, classes), setting.memory_format)
        x = torch.randn(
            setting.batch_size, *in_shape, dtype=weight_dtype(setting.precision), device=device
        )
        x, y = (
            x.contiguous(memory_format=form),
            torch.randint(classes, (setting.batch_size,), device=device),
        )
    for _ in range(steps if contestant.block > 1 else 1):
        contestant.step(x, y)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    after = peak_resident()
    return (after - before) / 2**10 if before and after else None


def peak_resident() -> int | None:
    """KiB that this process held at most; None without /proc. (Its rusage has its parent's too.)"""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return None
