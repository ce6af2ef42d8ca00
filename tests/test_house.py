"""The house keeps order: imports run down, nothing needless is loaded, every room is described."""

import ast
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import targetprop
from targetprop import maps
from targetprop.experiments.cells import Place

ROOT = Path(targetprop.__file__).parent
ROOMS = [
    "telling", "seeds", "maps", "ranks", "properties", "models", "laboratory", "feedback",
    "rules", "attach", "algorithms", "citations", "analysis", "data", "training",
    "benchmarking", "tuning", "report", "experiments", "commands",
]  # fmt: skip
"""From what everything rests on to what users type: a room imports itself and those before it."""


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """The rooms that a file imports when it is loaded, or later, within a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "targetprop"
        ):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


FILES = sorted(
    path for path in ROOT.rglob("*.py") if room_of(path) not in ("__init__", "__main__", "presets")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = ROOMS.index(room_of(path))
    upwards = [room for room in imported(path) if room in ROOMS and ROOMS.index(room) > here]
    assert not upwards, f"{room_of(path)} imports {upwards}"


def test_every_file_is_in_a_room():
    assert {room_of(path) for path in FILES} == set(ROOMS)


def test_the_architecture_page_describes_every_room():
    page = (ROOT.parent.parent / "docs" / "architecture.md").read_text()
    assert [room for room in ROOMS if f"`{room}" not in page] == []


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT.parent.parent / page).read_text(), re.S)


@pytest.mark.parametrize("code", blocks("CONTRIBUTING.md"))
def test_the_code_of_contributing_runs(code, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "contributed", types.ModuleType("contributed"))
    own = {"__name__": "contributed", "torch": torch}
    before = dict(maps.MAPS)
    try:
        exec(code, own)
        if "Halved" in own:
            model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
            targetprop.attach(model, rule=own["Halved"]())
            x = torch.randn(5, 4, requires_grad=True)
            model(x).sum().backward()
            wanted = torch.ones(5, 2) @ model[1].feedback_weight / 2 @ model[0].feedback_weight / 2
            torch.testing.assert_close(x.grad, wanted)
        if "reproduce" in own:
            own["reproduce"](Place(tmp_path, "smoke", None, None, lambda text: None))
            assert "1.41421" in (tmp_path / "roots.csv").read_text()
        if "feedback" in own:
            assert max(own["feedback"].mismatch().values()) == pytest.approx(
                0.5 * started(own["feedback"]), rel=1e-4
            )
    finally:
        maps.MAPS.clear()
        maps.MAPS.update(before)


def started(feedback):
    """The mismatch that calibration found before its half step."""
    return next(iter(feedback.learning.memory.values())).mismatch
