"""Every example a reader meets runs: docstrings, the README's code, CONTRIBUTING's."""

import doctest
import importlib
import json
import pkgutil
import re
import runpy
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
    (resume,) = [code for code in blocks("docs/attach.md") if "torch.save" in code]
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


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Tanh(), nn.Linear(8, 10))


PAGES = sorted(
    path.name
    for path in (ROOT / "docs").glob("*.md")
    if blocks(f"docs/{path.name}") and path.name != "attach.md"  # which has its own test
)


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_documentation_runs(page, capsys):
    here = {
        "AnyModule": small,
        "loader": [(torch.randn(2, 3, 32, 32), torch.randint(10, (2,))) for _ in range(2)],
    }
    for code in blocks(f"docs/{page}"):
        exec(code, here)
    learned = here.get("model") or here.get("net")
    shown = capsys.readouterr().out
    assert shown or any(p.grad is not None and p.grad.norm() > 0 for p in learned.parameters())


TINY = {
    "accelerate_loop": ["--epochs", "1"],
    "char_gpt": ["--steps", "1", "--device", "cpu"],
    "ddp": ["--steps", "2"],
    "digits": ["--epochs", "1"],
    "fsdp2": ["--steps", "2"],
    "huggingface_trainer": ["--steps", "6"],
    "lightning_loop": ["--epochs", "1"],
    "looking_inside": ["--steps", "3"],
    "own_layer": ["--steps", "3"],
    "own_rule": ["--steps", "2"],
    "resnet_cifar10": ["--steps", "2", "--batch", "8"],
    "vit": ["--steps", "2", "--layers", "1", "--width", "16"],
}
NEEDS = {
    "accelerate_loop": "accelerate",
    "huggingface_trainer": "transformers",
    "lightning_loop": "lightning",
}
DRAWN = {"char_gpt", "digits", "huggingface_trainer", "looking_inside", "own_rule"}
DRAWN |= {"resnet_cifar10", "vit"}


def test_every_example_is_run():
    assert sorted(TINY) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", sorted(TINY))
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    """Each as a user would run it, in few steps, drawing where it draws; at most 80 lines."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name == "accelerate_loop":
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    import matplotlib.pyplot as plt

    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().axes))
    monkeypatch.setattr(sys, "argv", [str(path), *TINY[name]])
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    before = dict(tp.maps.MAPS)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        tp.maps.MAPS.clear()
        tp.maps.MAPS.update(before)
        plt.close("all")
    assert bool(shown) == (name in DRAWN)
    assert all(axis.lines or axis.images or axis.collections for axes in shown for axis in axes)
    assert capsys.readouterr().out or name in DRAWN


SHORTER = {
    "comparing_rules": ("STEPS = 150", "STEPS = 2"),
    "five_minutes": ("range(300)", "range(20)"),
    "what_feedback_learns": ("range(200)", "range(20)"),
}


@pytest.mark.parametrize("name", sorted(SHORTER))
def test_notebooks_run(name):
    import matplotlib.pyplot as plt

    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert SHORTER[name][0] in code
    plt.switch_backend("Agg")
    exec(code.replace(*SHORTER[name]), {})
    assert plt.get_fignums()
    plt.close("all")


def test_every_notebook_is_run():
    assert sorted(SHORTER) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


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
