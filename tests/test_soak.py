"""Long work keeps memory and open files flat."""

import gc
import os
from pathlib import Path

import pytest
import torch

import models
import targetprop as tp
from targetprop.commands import main

pytestmark = pytest.mark.slow


def resident():
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ["resnet_basic", "gpt_tied", "hooked"])
def test_2000_steps_of_attach(name):
    model, x, loss = models.make(name, torch.float32)
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.AdamW(model.parameters(), 1e-3))
    seen = []
    for step in range(2000):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
        if step in (499, 1999):
            seen.append((resident(), descriptors()))
    (early, files), (late, files_late) = seen
    print(f"{name}: {early / 2**20:.1f} MiB after 500 steps, {late / 2**20:.1f} after 2,000")
    assert files == files_late
    assert late < 1.02 * early


def test_200_runs_in_one_process(tmp_path):
    words = ["--network.channels", "[4]", "--data.limit", "200", "--data.batch_size", "20"]
    seen = []
    for run in range(200):
        preset = ("digits-ldrl", "digits-backprop")[run % 2]
        folder = tmp_path / str(run)
        assert main.main(["train", preset, *words, "--steps", "4", "--out", str(folder)]) == 0
        if run in (49, 199):
            seen.append((resident(), descriptors()))
    (early, files), (late, files_late) = seen
    print(f"{early / 2**20:.1f} MiB after 50 runs, {late / 2**20:.1f} after 200")
    assert files == files_late
    assert late < 1.02 * early
