"""A user's own network by the command line: train, resume, evaluate, compare, sweep; refusals."""

import json
import sys

import pytest
import torch

from targetprop.commands import main as cli
from targetprop.training import build, config
from targetprop.training.config import ConfigError

CODE = """
from torch import nn

def make(in_shape, classes, width=16, norm=True):
    size = in_shape[0] * in_shape[1] * in_shape[2]
    middle = nn.LayerNorm(width) if norm else nn.Identity()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, width), middle, nn.GELU(), nn.Linear(width, classes)
    )

def bad(in_shape, classes):
    return nn.Flatten()

def nothing(in_shape, classes):
    return 3

number = 3

class Fails(nn.Linear):
    def forward(self, x):
        return {}["key"]

def fails(in_shape, classes):
    return Fails(64, classes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(CODE)
    (tmp_path / "broken_models.py").write_text("x = (")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_models", None)


def run(*arguments):
    return cli.main([str(a) for a in arguments])


SHORT = ["--data.limit", "128", "--measure_every", "2", "--log_every", "1", "--device", "cpu"]


def test_trains_resumes_evaluates_compares_and_sweeps(own):
    name = ["--network.name", "own_models:make", "--network.options.width", "12"]
    assert run("train", "digits-ldrl", *name, *SHORT, "--epochs", "2", "--out", "whole") == 0
    assert "width: 12" in (own / "whole/config.yaml").read_text()
    assert (
        run("train", "digits-ldrl", *name, *SHORT, "--epochs", "2", "--steps", "1", "--out", "half")
        == 0
    )
    assert run("resume", "half", "--steps", "2") == 0
    whole, half = (
        torch.load(own / f"{f}/last.pt", weights_only=False)["net"] for f in ("whole", "half")
    )
    for key, value in whole.items():
        assert torch.equal(value, half[key]), key
    assert run("evaluate", "whole") == 0
    assert run("train", "digits-backprop", *name, *SHORT, "--epochs", "2", "--out", "bp") == 0
    assert run("compare", "whole", "bp", "--out", "picture.png") == 0
    rows = [json.loads(line) for line in (own / "whole/metrics.jsonl").read_text().splitlines()]
    angles = [row["angle"] for row in rows if "angle" in row]
    assert angles
    assert max(max(row.values()) for row in angles) < 1e-2
    assert (
        run(
            "sweep", "digits-ldrl", *name, *SHORT, "--epochs", "1", "--seeds", "2", "--out", "sweep"
        )
        == 0
    )
    name = ["--network.name", "own_models:make"]  # another width
    assert (
        run(
            "sweep", "digits-ldrl", *name, *SHORT, "--epochs", "1", "--seeds", "2", "--out", "sweep"
        )
        == 2
    )


@pytest.mark.parametrize(
    "rule", ["direct_feedback_alignment", "kolen_pollack", "weight_mirror", "sign_symmetry"]
)
def test_every_rule_resumes_and_evaluates(own, rule):
    name = ["--algorithm.name", rule, "--network.name", "own_models:make"]
    assert run("train", "digits-backprop", *name, *SHORT, "--epochs", "2", "--out", "whole") == 0
    assert (
        run(
            "train",
            "digits-backprop",
            *name,
            *SHORT,
            "--epochs",
            "2",
            "--steps",
            "1",
            "--out",
            "half",
        )
        == 0
    )
    assert run("resume", "half", "--steps", "2") == 0
    whole, half = (
        torch.load(own / f"{f}/last.pt", weights_only=False)["net"] for f in ("whole", "half")
    )
    assert all(torch.equal(value, half[key]) for key, value in whole.items())
    assert run("evaluate", "half") == 0


def test_bench_times_a_network_of_the_users_own(own, capsys):
    contenders = ["plain", "attach", "attach:coupled", "attach:feedback_alignment"]
    words = [
        *contenders,
        "--data",
        "digits",
        "--steps",
        "10",
        "--warmup",
        "2",
        "--batch-size",
        "16",
        "--device",
        "cpu",
    ]
    name = ["--networks", "own_models:make", "--network.options.width", "12"]
    assert run("bench", *words, *name) == 0
    (measured,) = json.loads((own / "bench/bench.json").read_text())["results"]
    assert measured["setting"]["options"] == {"width": 12}
    assert [row["contender"] for row in measured["rows"]] == contenders
    assert measured["rows"][1]["angle_max"] < 0.1
    assert measured["rows"][2]["iterations"] > 0
    assert measured["rows"][3]["angle_max"] > 10
    for name, message in (
        (["own_models:bad"], "expected logits (2, 10)"),
        (["vti"], "unknown network 'vti'; did you mean 'vit'"),
        (["lenet", "--network.options.width", "3"], "but no network.options; got width"),
        (["vit", "--channels", "3"], "give --network.options.KEY instead"),
        (["vit", "--optimizer.lr", "3"], "unexpected '--optimizer.lr'"),
    ):
        assert run("bench", *words, "--networks", *name, "--out", "other") == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_settings_of_the_default_solver_count_on_plain_networks():
    chosen = config.load("digits-resnet-ldrl", [("predictive.probe_every", "7")])
    solver = build.build_algorithm(chosen, torch.nn.Linear(3, 2)).feedback.solver
    assert (solver.probe_every, solver.limit) == (7, 0.01)


@pytest.mark.parametrize("rule", ["backprop", "ldrl", "feedback_alignment", "sign_symmetry"])
@pytest.mark.parametrize("task", ["digits-resnet", "digits-vit"])
def test_presets_of_modern_networks(own, task, rule):
    assert run("train", f"{task}-{rule}", *SHORT, "--steps", "3", "--out", "run") == 0
    assert f"cifar10-{'resnet20' if 'resnet' in task else 'vit'}-{rule}" in config.presets()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network.name", "own_models:bad"], "expected logits (2, 10)"),
        (["--network.name", "own_models:nothing"], "made int, expected a torch.nn.Module"),
        (["--network.name", "own_models:number"], "is int; expected a callable"),
        (["--network.name", "own_models:none"], "cannot be imported"),
        (["--network.name", "nowhere:make"], "cannot be imported"),
        (["--network.name", "broken_models:make"], "cannot be imported (SyntaxError: "),
        (
            ["--network.name", "own_models:fails"],
            "does not fit images of shape (1, 8, 8): KeyError: 'key'",
        ),
        (
            ["--network.name", "own_models:make", "--network.options.depth", "2"],
            "by make((1, 8, 8), 10, depth=2)",
        ),
        (
            ["--network.name", "own_models:make", "--network.activation", "relu"],
            "a setting of paired networks",
        ),
        (["--network.options.width", "3"], "but no network.options; got width"),
        (
            ["--network.name", "vit", "--algorithm.solver", "sgd"],
            "needs a paired network; a plain one takes",
        ),
        (
            ["--network.name", "vit", "--algorithm.name", "dtp", "--network.options.patch", "2"],
            "needs explicit passes",
        ),
        (["--network.name", "vit", "--network.options.patch", "3"], "patches of 3 do not tile"),
        (["--network.options", "3"], "is no mapping"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(own, capsys, arguments, message):
    preset = "digits-backprop" if "--algorithm.name" in arguments else "digits-ldrl"
    if (
        "--network.name" in arguments
        and "--algorithm.solver" not in arguments
        and "dtp" not in arguments
    ):
        arguments = [*arguments, "--algorithm.solver", "predictive"]
    assert run("train", preset, *arguments, "--out", "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert not (own / "run").exists()


def test_another_network_drops_the_settings_of_the_presets_own():
    chosen = config.load(
        "digits-vit-ldrl", [("network.name", "own_models:make"), ("network.options.width", "3")]
    )
    assert chosen.network.options == {"width": 3}
    assert config.load("digits-ldrl", [("network.name", "vit")]).network.channels is None
    with pytest.raises(ConfigError, match=r"unknown network\.name 'vti'; did you mean 'vit'"):
        config.load("digits-ldrl", [("network.name", "vti")])
