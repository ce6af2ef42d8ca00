"""Figures and tables of the paper at smoke scale, and what they are made of."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from targetprop.algorithms import DDTPLinear
from targetprop.analysis.alignment import backprop_gradients
from targetprop.commands import main as cli
from targetprop.experiments import (
    char_gpt,
    evidence,
    figure_4_2,
    figure_4_3,
    figure_4_3_curves,
    theory,
)
from targetprop.experiments.cells import Place, cell, mean_and_std
from targetprop.experiments.reproduce import EXPERIMENTS
from targetprop.training.config import ConfigError


def smoke(name, tmp_path, *words):
    assert cli.main(["reproduce", name, "--scale", "smoke", "--out", str(tmp_path), *words]) == 0
    return tmp_path / name


def image_is_drawn(path):
    """The picture has pixels of several colours on white."""
    from matplotlib import image

    pixels = torch.tensor(image.imread(path))[..., :3]
    ink = (pixels < 0.99).any(-1).float().mean().item()
    return 0.01 < ink < 0.9 and len(torch.unique(pixels.reshape(-1, 3), dim=0)) > 20


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_result_is_written_and_goes_on_where_it_was(name, tmp_path, monkeypatch):
    folder = smoke(name, tmp_path, "--seeds", "1")
    for suffix in ("md", "csv", "png", "pdf"):
        assert (folder / f"{name}.{suffix}").stat().st_size > 200
    assert all(image_is_drawn(path) for path in folder.glob("*.png"))
    text = (folder / f"{name}.md").read_text()
    assert f"targetprop reproduce {name} --scale smoke" in text
    assert "commit" in text
    assert "| --- |" in text
    rows = list(csv.DictReader((folder / f"{name}.csv").open()))
    assert len(rows) >= 3
    assert all(None not in row and all(v is not None for v in row.values()) for row in rows)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/**/cell.json")}
    smoke(name, tmp_path, "--seeds", "1")
    assert before
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("cells/**/cell.json")}


def test_a_cell_is_computed_once_and_refuses_other_settings(tmp_path):
    place, calls = Place(tmp_path, "smoke"), []
    for _ in range(2):
        assert cell(
            place, "a/b", {"seed": 1, "n": 2}, lambda folder: calls.append(folder) or {"x": 1.5}
        ) == {"x": 1.5}
    assert len(calls) == 1
    kept = json.loads((tmp_path / "cells/a/b/cell.json").read_text())
    assert kept["settings"] == {"seed": 1, "n": 2}
    assert kept["environment"]["torch"] == torch.__version__
    with pytest.raises(ConfigError, match=r"other settings \(n\)"):
        cell(place, "a/b", {"seed": 1, "n": 3}, lambda folder: {})


def test_seeds_go_on_beyond_the_experiments_own():
    assert Place(Path(), "cpu").choose((3, 9)) == [3, 9]
    assert Place(Path(), "smoke").choose((3, 9, 4)) == [3, 9]
    assert Place(Path(), "cpu", 1).choose((3, 9)) == [3]
    assert Place(Path(), "cpu", 4).choose((3, 9)) == [3, 9, 10, 11]


def test_mean_and_std_are_those_of_each_column():
    mean, std = mean_and_std([[1.0, 2.0], [3.0, 2.0]])
    assert mean == [2.0, 2.0]
    assert std == pytest.approx([math.sqrt(2), 0.0])


def test_slope_is_the_exponent_of_a_power():
    x = [0.1, 0.4, 2.0, 7.0]
    assert theory.slope(x, [3 * a**-0.7 for a in x]) == pytest.approx(-0.7)


def test_theory_holds_on_digits():
    settings = theory.SCALES["smoke"]
    assert theory.small_noise(settings, None, 0, "tanh")["slope"] == pytest.approx(2, abs=0.1)
    matched, mirror = (
        theory.gradient_error(settings, None, 0, kind) for kind in ("matched", "mirror")
    )
    assert matched["slope"] == pytest.approx(1, abs=0.05)
    assert matched["errors"][0] < 1e-4
    assert abs(mirror["slope"]) < 0.05
    assert mirror["errors"][0] > 0.05
    falls = theory.mismatch(settings, None, 0)
    assert falls["predictive"][0] < 1e-12
    assert falls["correlation"] == pytest.approx(falls["predicted"], rel=0.3)


def test_layer_training_resumes_bit_for_bit(tmp_path):
    def run(folder, *stops):
        net, (x, _) = figure_4_3.lenet_batch("digits", None, 1, False, "mirror", "none")
        solver = figure_4_3.SGDSolver(noise=0.1, lr=1e-2, iterations=1)
        with torch.no_grad():
            layer, trace = net.leaf_traces(net.trace(x)[1])[-1]
        folder.mkdir()
        for stop in stops:
            figure_4_3.train_layer(folder, 0, solver, layer, trace, stop, 5)
            layer.omega.data.add_(1.0)  # whatever happens in between, the checkpoint counts
        figure_4_3.train_layer(folder, 0, solver, layer, trace, 510, 5)
        return layer.omega

    assert torch.equal(run(tmp_path / "whole"), run(tmp_path / "parts", 250, 500))


def test_drl_is_measured_as_published():
    """Against the published losses by autograd: mean over convolution outputs, targets with 1/B."""
    net, (x, y) = figure_4_3.lenet_batch("digits", None, 1, False, "mirror", "none")
    net, x = net.double(), x.double()
    algo = DDTPLinear(net, figure_4_3.BETA, iterations=0)
    algo.backward(x, y)
    updates = [layer.theta.grad for layer in net.layers]
    inputs, units = [x], []
    for layer in net.layers:
        inputs.append(layer.trace(inputs[-1]).output.detach())
        units.append(inputs[-1][0].numel() if layer.theta.ndim == 4 else 1)
    logits = inputs[-1].requires_grad_()
    nudge = -figure_4_3.ETA * torch.autograd.grad(F.cross_entropy(logits, y), logits)[0]
    found = figure_4_3.aligned_as_published(
        updates, backprop_gradients(net, algo, x, y), units, len(x)
    )
    for i, (name, layer) in enumerate(zip(net.names, net.layers, strict=True)):
        out = layer.trace(inputs[i]).output
        apart = nudge if name not in algo.directs else (nudge @ algo.directs[name]).view_as(out)
        target = (out + apart).detach()
        loss = (
            F.mse_loss(out, target)
            if layer.theta.ndim == 4
            else (out - target).square().sum(1).mean()
        )
        (u,) = torch.autograd.grad(loss / figure_4_3.BETA, layer.theta)
        (g,) = torch.autograd.grad(F.cross_entropy(net(x), y), layer.theta)
        cosine = (u * g).sum() / (u.norm() * g.norm() + 1e-8)
        assert found["angle"][i] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-9)
        assert found["distance"][i] == pytest.approx(((u - g).norm() / u.norm()).item(), rel=1e-9)
    assert 1e-3 < found["angle"][-1] < 10, (
        "1e-8 shows in the output layer, whose update is the gradient"
    )


def test_the_predictive_solver_is_exact_on_the_output_layer_at_once():
    settings = {"data": "digits", "iterations": 25}
    found = figure_4_2.curve(figure_4_2.WAYS["L-DRL, predictive"], 123, settings, None)
    assert found["angle"][0] > 60
    assert found["angle"][1] < 0.1


def test_the_updates_reach_what_the_transpose_leaves_at_the_counted_cost():
    settings = {"data": "digits", "iterations": 40}
    found = figure_4_3_curves.curve(
        figure_4_3_curves.WAYS["predictive"], "matched", 123, settings, None
    )
    assert min(found["angle"][0][:3]) > 60
    assert found["angle"][-1] == pytest.approx(found["limit"], abs=0.1)
    assert max(found["limit"]) < 10
    assert found["iteration"][-1] == 10
    paper = figure_4_3_curves.curve(
        figure_4_3_curves.WAYS["paper's solver"], "mirror", 123, {**settings, "iterations": 2}, None
    )
    assert paper["passes"] == [0, 4, 8]
    assert paper["limit"][0] > 20


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["figure-4.2", "--seeds", "0"], "out of range"),
        (["figure-4.2", "--scale", "cpu", "--data-dir", "nowhere"], "cifar10"),
        (["theory", "x"], "unexpected 'x'"),
        (["theory", "--only", "vit"], "a part of evidence"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, tmp_path, capsys):
    assert cli.main(["reproduce", *words, "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_the_gpt_reads_a_text_of_tiny_shakespeares_length(tmp_path):
    (tmp_path / char_gpt.TEXT).write_text("To be, or " * 111_539)  # 1,115,390 bytes
    place = Place(tmp_path, "cpu", data_dir=str(tmp_path))
    assert len(char_gpt.text_of(place)) == 1_115_390


def test_the_queue_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    """Stopped after every step it ends as in one go, image runs and the GPT alike."""
    monkeypatch.setattr(evidence, "QUEUE", evidence.QUEUE[:2])
    monkeypatch.setattr(evidence, "draw_panels", lambda *args, **more: None)
    once = smoke("evidence", tmp_path / "once", "--seeds", "1", "--only", "char-gpt")
    assert len(list(once.glob("cells/**/cell.json"))) == 3
    once = smoke("evidence", tmp_path / "once", "--seeds", "1")
    words = ["reproduce", "evidence", "--scale", "smoke", "--seeds", "1"]
    for _ in range(30):
        code = cli.main([*words, "--minutes", "0", "--out", str(tmp_path / "cut")])
        if code == 0:
            break
        assert code == 128 + 14
    assert "go on with the same command" in capsys.readouterr().err
    cut = tmp_path / "cut" / "evidence"
    names = [path.relative_to(once) for path in once.glob("cells/**/cell.json")]
    assert len(names) == 5
    for name in names:
        a, b = (json.loads((folder / name).read_text())["result"] for folder in (once, cut))
        assert a["test"] == b["test"], name
        assert a["angle_max"] == b["angle_max"], name


def test_minutes_stop_any_experiment_between_its_cells(tmp_path, capsys):
    words = ["reproduce", "theory", "--scale", "smoke", "--minutes", "0", "--out", str(tmp_path)]
    counts = []
    for _ in range(20):
        code = cli.main(words)
        counts.append(len(list(tmp_path.glob("theory/cells/**/cell.json"))))
        if code == 0:
            break
        assert code == 128 + 14
        assert "go on with the same command" in capsys.readouterr().err
    assert code == 0
    assert counts[:-1] == list(range(1, len(counts)))
