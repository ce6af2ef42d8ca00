"""Every example a reader meets runs: docstrings, the README's code, CONTRIBUTING's."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import targetprop as tp

ROOT = Path(__file__).parent.parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages(tp.__path__, "targetprop.")
    if ">>>" in Path(importlib.util.find_spec(module.name).origin).read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_run(module):
    before = dict(tp.maps.MAPS)
    try:
        found = doctest.testmod(
            importlib.import_module(module), extraglobs={"tp": tp, "torch": torch, "F": F}
        )
    finally:
        tp.maps.MAPS.clear()
        tp.maps.MAPS.update(before)
    assert found.failed == 0


def blocks(name):
    """The Python code of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_code_of_the_readme_trains():
    def images(count):
        return [(torch.randn(count, 3, 32, 32), torch.randint(10, (count,))) for _ in range(2)]

    def any_module():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    attached, chain = blocks("README.md")
    here = {"AnyModule": any_module, "loader": images(8)}
    exec(attached, here)
    assert max(here["feedback"].mismatch().values()) < 0.01
    assert here["model"][0].weight.grad.norm() > 0
    here["loader"] = images(2)
    exec(chain, here)
    assert all(p.grad.norm() > 0 for p in here["net"].parameters() if p.requires_grad)


def test_code_of_the_page_on_attach_resumes(tmp_path, monkeypatch):
    def any_module():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    monkeypatch.chdir(tmp_path)
    (resume,) = blocks("docs/attach.md")
    start, saves = resume.split("torch.save")
    here = {"AnyModule": any_module, "torch": torch, "tp": tp}
    x = torch.randn(16, 4)

    def train(run, steps):
        for _ in range(steps):
            run["optimizer"].zero_grad()
            run["model"](x).square().mean().backward()
            run["optimizer"].step()

    exec(start, here)
    before = here["run"]
    train(before, 13)
    exec("torch.save" + saves, here)
    for run in (before, here["run"]):
        train(run, 13)
    assert here["run"] is not before
    for one, other in zip(
        before["model"].parameters(), here["run"]["model"].parameters(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("block", range(4), ids=["rule", "solver", "map", "experiment"])
def test_code_of_contributing_runs(block, tmp_path):
    code = blocks("CONTRIBUTING.md")
    assert len(code) == 4
    run = {3: "\nfrom pathlib import Path\nreproduce(Place(Path('out'), 'smoke'))"}.get(block, "")
    done = subprocess.run(
        [sys.executable, "-c", f"import torch\n{code[block]}{run}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
