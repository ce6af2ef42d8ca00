"""Tuning: spaces and refusals, studies that outlive their processes, no look at the test set."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from targetprop.commands import main as cli
from targetprop.experiments import paper_tables, trained
from targetprop.experiments.cells import Place
from targetprop.training import checkpoint, config, loop
from targetprop.training.config import ConfigError
from targetprop.tuning import space, trials
from targetprop.tuning.default_space import default_space
from targetprop.tuning.space import Choices, Range

optuna = pytest.importorskip("optuna")

TINY = ["--network.channels", "[8,16]", "--data.limit", "400", "--data.batch_size", "20"]
TINY += ["--measure_every", "0", "--log_every", "100"]
RATES = "optimizer.lr: {choices: [1e-6, 0.02]}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.yaml").write_text(RATES)
    (tmp_path / "range.yaml").write_text("optimizer.lr: {low: 1e-6, high: 1e-1, log: true}\n")
    return tmp_path


def words(*more, trials=4, epochs=2, preset="digits-backprop"):
    own = ["tune", preset, "--trials", trials, *TINY, "--epochs", epochs, *more]
    return [str(word) for word in own]


def tune(*more, **kwargs):
    return cli.main(words(*more, **kwargs))


def found(folder="study"):
    return json.loads(Path(f"{folder}/trials.json").read_text())


def values(folder="study"):
    listed = sorted(found(folder)["trials"], key=lambda trial: trial["trial"])
    return [trial["values"] for trial in listed]


def test_a_space_is_read_as_written():
    text = "{a: 1e-4, b: 0.1}"
    assert yaml.safe_load(text)["a"] == "1e-4"  # text in YAML, a number to us
    got = space.parse(
        {
            "optimizer.lr": {"low": "1e-4", "high": 0.1, "log": True, "points": 4},
            "predictive.probe_every": {"low": 1, "high": 9, "step": 4},
            "network.channels": {"choices": [[4], [8]]},
            "network.options.width": {"low": 2, "high": 4},
        },
        "s.yaml",
    )
    assert got["optimizer.lr"] == Range(1e-4, 0.1, True, None, 4)
    assert got["optimizer.lr"].grid() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert got["predictive.probe_every"].grid() == [1, 5, 9]
    assert got["network.channels"] == Choices(([4], [8]))
    assert got["network.options.width"].grid() == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer.lrr: {low: 1, high: 2}", r"unknown key 'optimizer.lrr'; .*'optimizer.lr'"),
        ("optimizer: {low: 1, high: 2}", r"unknown key 'optimizer'"),
        ("data.validation: {low: 0.1, high: 0.2}", r"data.validation cannot be tuned"),
        ("seed: {choices: [1, 2]}", r"seed cannot be tuned"),
        ("optimizer.lr: 0.1", r"is no range; write"),
        ("optimizer.lr: {low: 1, high: 2, logs: true}", r"unknown 'logs'; did you mean 'log'"),
        ("optimizer.lr: {low: 0.2, high: 0.1}", r"high=0.1 is out of range.*more than low=0.2"),
        ("optimizer.lr: {low: 0, high: 0.1, log: true}", r"low=0 is out of range"),
        ("optimizer.lr: {low: a, high: 0.1}", r"low=a is out of range; expected a number"),
        ("optimizer.lr: {low: 1}", r"high=None is out of range; expected a number"),
        ("optimizer.lr: {low: .nan, high: 1}", r"expected a number"),
        ("optimizer.lr: {choices: []}", r"choices=\[\] is out of range"),
        ("optimizer.lr: {choices: [0.1, 0.1]}", r"names one twice"),
        ("optimizer.lr: {low: 0.1, high: 1, points: 1}", r"points=1 is out of range"),
        ("optimizer.momentum: {low: 0.5, high: 1.5}", r"momentum=1.5 is out of range"),
        ("optimizer.name: {low: 1, high: 2}", r"takes no number"),
        ("epochs: {low: 1.5, high: 2}", r"low=1.5 is out of range; expected an integer"),
        ("algorithm.name: {choices: [backprop, ldlr]}", r"unknown algorithm.name 'ldlr'"),
        ("predictive.lr: {low: 1, high: 2}", r"unknown key 'predictive.lr'"),
        ("[1, 2]", r"holds list"),
        ("", r"holds nothing"),
    ],
)
def test_a_space_out_of_order_is_one_sentence(text, sentence, here, capsys):
    (here / "s.yaml").write_text(text)
    assert tune("--space", "s.yaml") == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said), said
    assert said.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["range.yaml", "rates.yaml", "s.yaml"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--data.validation", "0"], r"data.validation=0.* leaves no images to judge a trial by"),
        (["--storage", "postgresql://x"], r"write sqlite:///study.db"),
        (["--storage", "sqlite:///"], r"write sqlite:///study.db"),
        (["--storage", "sqlite:///rates.yaml"], r"rates.yaml: is no SQLite file"),
        (["--storage", "sqlite:///other.db"], r"holds no study"),
        (["--storage", "sqlite:///foreign.db"], r"that 'targetprop tune' did not make"),
        (["--space", "none.yaml"], r"no such file: none.yaml"),
        (["--sampler", "grid", "--space", "range.yaml"], r"has no grid; add points: 5"),
        (["--trials", "0"], r"--trials 0 is out of range"),
        (["--optimizer.lrr", "1"], r"unknown key 'optimizer.lrr'"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence_and_touches_nothing(more, sentence, here, capsys):
    made = sqlite3.connect("other.db")
    made.execute("CREATE TABLE mine (x)")
    made.commit()
    made.close()
    optuna.create_study(storage="sqlite:///foreign.db", study_name="theirs")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert tune(*more) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said), said
    assert before == {path.name: path.read_bytes() for path in here.iterdir()}


def test_without_optuna_a_sentence_says_what_to_install(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    before = sorted(here.rglob("*"))
    assert tune() == 2
    assert "tune needs optuna; pip install 'targetprop[tune]'" in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_has_a_space_of_its_own(name):
    base = config.load(name)
    made = default_space(base)
    assert made["optimizer.lr"].ends == [base.optimizer.lr / 10, base.optimizer.lr * 10]
    space.check(made, base, "the default space")
    assert len(space.grid(made, "the default space")) >= 15
    paired = base.network.name in ("lenet", "simple_vgg", "mlp")
    assert ("algorithm.beta" in made) == (paired and base.algorithm.name == "ldrl")
    again = space.parse({key: one.record() for key, one in made.items()}, "s")
    assert again == made


def test_a_study_finds_the_better_rate_and_never_reads_the_test_set(here, monkeypatch, capsys):
    seen = []
    real = loop.accuracy

    def watched(net, algo, batches):
        seen.append(len(batches.data))
        return real(net, algo, batches)

    def never(*_):
        raise AssertionError("the test set was evaluated")

    monkeypatch.setattr(loop, "accuracy", watched)
    monkeypatch.setattr(loop, "finish", never)
    assert tune("--space", "rates.yaml", "--sampler", "random") == 0
    assert set(seen) == {40}  # a tenth of 400; the test set has 359
    written = found()
    assert len(written["trials"]) == 4
    assert {trial["values"]["optimizer.lr"] for trial in written["trials"]} == {1e-6, 0.02}
    assert written["trials"][0]["values"] == {"optimizer.lr": 0.02}
    base = config.load("digits-backprop", [("epochs", "2"), *pairs()])
    best = config.load("study/best.yaml")
    assert best.anywhere() == space.settled(base, {"optimizer.lr": 0.02}).anywhere()
    record = written["trials"][0]["environment"]
    assert record["seed"] == 0
    assert {"command", "commit", "device", "date"} <= set(record)
    assert "Commit" in Path("study/trials.md").read_text()
    assert not list(here.rglob("*.pt"))
    monkeypatch.undo()
    monkeypatch.chdir(here)
    before = written["trials"]
    assert tune("--space", "rates.yaml", "--sampler", "random") == 0  # nothing is left to do
    assert found()["trials"] == before
    assert cli.main(["train", "study/best.yaml", "--out", "run"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["validation_accuracy"] == before[0]["validation_accuracy"]


def pairs():
    return [(TINY[i][2:], TINY[i + 1]) for i in range(0, len(TINY), 2)]


def test_a_seed_gives_the_same_trials_and_another_study_is_refused(here, capsys):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        more = ["--space", "range.yaml", "--storage", f"sqlite:///{name}.db", "--seed", seed]
        assert tune(*more, trials=3, epochs=1) == 0
    assert values("a") == values("b") != values("c")
    assert len({json.dumps(value) for value in values("a")}) == 3
    kept = (here / "a.db").read_bytes()
    own = ["--storage", "sqlite:///a.db", "--space", "range.yaml"]
    for more, what in (
        (["--space", "rates.yaml"], "space of optimizer.lr"),
        (["--sampler", "random"], "sampler"),
        (["--seed", "4"], "seed"),
        (["--no-prune"], "prune"),
        (["--out", "elsewhere"], "folder"),
    ):
        assert tune(*own, *more, epochs=1) == 2
        assert f"is a study of other settings ({what})" in capsys.readouterr().err
    assert tune(*own, preset="digits-ldrl", epochs=1) == 2
    assert "algorithm.name" in capsys.readouterr().err
    assert (here / "a.db").read_bytes() == kept


def test_a_grid_is_tried_point_by_point_and_divergence_does_not_stop_it(here, capsys):
    (here / "s.yaml").write_text(
        "optimizer.lr: {choices: [1e30, 0.02]}\nnetwork.channels: {choices: [[4], [8]]}"
    )
    assert tune("--space", "s.yaml", "--sampler", "grid", trials=9, epochs=1) == 0
    rates, widths = [1e30, 0.02], [[4], [8]]
    assert values() == [{"optimizer.lr": a, "network.channels": b} for a in rates for b in widths]
    states = {trial["trial"]: trial["why"].partition(":")[0] for trial in found()["trials"]}
    assert states == {0: "diverged", 1: "diverged", 2: "", 3: ""}
    (here / "s.yaml").write_text("optimizer.lr: {choices: [1e30]}")
    assert tune("--space", "s.yaml", "--storage", "sqlite:///bad.db", trials=1, epochs=1) == 3
    assert not (here / "bad/best.yaml").exists()


def test_trials_worse_than_the_median_are_pruned(here, monkeypatch):
    scores = iter([0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1])

    def scored(*_):
        value = next(scores)
        return {"loss": 1.0, "accuracy": value}

    monkeypatch.setattr(loop, "accuracy", scored)
    assert tune("--space", "range.yaml", "--sampler", "random", trials=5, epochs=3) == 0
    last = next(trial for trial in found()["trials"] if trial["trial"] == 4)
    assert last["state"] == "pruned"
    assert last["validation_by_epoch"] == [0.1, 0.1]  # never after the first epoch


def begin(*more, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "targetprop", *words(*more, **kwargs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_in_a_trial_it_ends_with_all_trials_like_one_never_killed(here):
    own = ["--space", "range.yaml", "--sampler", "random", "--checkpoint_every", "5"]
    process = begin(*own, trials=3, epochs=15)
    metrics = here / "study/trial-001/metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until a checkpoint has an epoch of it
        if metrics.exists() and metrics.read_text().count('"validation"') > 1:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoint.load(metrics.with_name("last.pt"))["progress"]["epoch"] >= 1
    assert not (here / "study/trials.json").exists()
    assert tune(*own, trials=3, epochs=15) == 0
    assert tune(*own, "--storage", "sqlite:///whole.db", trials=3, epochs=15) == 0
    listed = found()["trials"]
    assert len(listed) == 3
    assert {trial["state"] for trial in listed} <= {"ended", "pruned"}
    shown = ("trial", "state", "validation_accuracy", "values", "validation_by_epoch")
    kept = [{key: trial[key] for key in shown} for trial in listed]
    whole = [{key: trial[key] for key in shown} for trial in found("whole")["trials"]]
    assert kept == whole
    states = [
        t.state.name
        for t in optuna.load_study(study_name="targetprop", storage="sqlite:///study.db").trials
    ]
    assert states.count("FAIL") == 1


def test_a_trial_that_takes_its_processes_with_it_is_given_up(here, monkeypatch, capsys):
    def dies(*_, **__):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(trials, "trial", dies)
    for _ in range(3):
        assert tune("--space", "range.yaml", trials=1) == 70
    assert tune("--space", "range.yaml", trials=1) == 3
    assert [trial["state"] for trial in found()["trials"]] == ["given up"]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert tune("--space", "range.yaml", trials=2, epochs=2) == 0
    assert sorted(trial["state"] for trial in found()["trials"]) == ["ended", "given up"]


def test_stopped_by_a_signal_it_says_how_to_go_on(here, monkeypatch, capsys):
    real, calls = loop.step, []

    def step(*inputs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*inputs)

    monkeypatch.setattr(loop, "step", step)
    assert tune("--space", "range.yaml", trials=2) == 130
    assert "go on with the same command" in capsys.readouterr().err
    assert found()["trials"][0]["state"] == "waiting"
    assert tune("--space", "range.yaml", trials=2) == 0
    assert len(found()["trials"]) == 2


def test_two_processes_share_a_study(here):
    own = ["--space", "range.yaml", "--sampler", "random"]
    both = [begin(*own, trials=5, epochs=3) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert tune(*own, trials=5, epochs=3) == 0
    listed = found()["trials"]
    assert sorted(trial["trial"] for trial in listed) == [0, 1, 2, 3, 4]
    assert {trial["state"] for trial in listed} <= {"ended", "pruned"}
    assert all("trial 0" in text or "trial 1" in text for text in said)
    study = optuna.load_study(study_name="targetprop", storage="sqlite:///study.db")
    assert len(study.trials) == 5
    assert len({json.dumps(value) for value in values()}) == 5


def test_folders_of_other_trials_are_left_alone(here, capsys):
    assert tune("--space", "range.yaml", trials=1, epochs=1) == 0
    before = sorted(here.rglob("*"))
    assert tune("--space", "rates.yaml", "--storage", "sqlite:///new.db", "--out", "study") == 2
    assert "holds trials of a study other than new.db" in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before
    (here / "study.db").rename("moved.db")
    (here / "study").rename("moved")
    assert tune("--space", "range.yaml", "--storage", "sqlite:///moved.db", trials=2, epochs=1) == 0
    assert len(found("moved")["trials"]) == 2
    other = config.load("moved/best.yaml", [("optimizer.lr", 0.5)])
    with pytest.raises(ConfigError, match=r"other settings \(optimizer.lr\)"):
        trials.trial(other, here / "moved/trial-000")


def test_table_1_chooses_among_the_same_runs_as_before(tmp_path):
    """The choice of the loop that was there: whole runs with a test, the best by validation."""
    plan = paper_tables.chosen(paper_tables.TABLE_1, "smoke", "digits", "backprop", 0, None)
    grid, place = (1e-6, 0.02, 0.03), Place(tmp_path, "smoke")
    best = trained.best_rate(place, "digits/backprop", plan, grid)
    old = {
        rate: paper_tables.train(
            place, f"old/lr-{rate:g}", space.settled(plan, {trained.RATE: rate})
        )
        for rate in grid
    }
    assert best == max(grid, key=lambda rate: old[rate]["validation_accuracy"])
    for rate in grid:
        new = json.loads((tmp_path / f"cells/digits/backprop/lr-{rate:g}/cell.json").read_text())
        assert new["settings"]["optimizer"]["lr"] == rate
        assert new["result"]["validation_accuracy"] == old[rate]["validation_accuracy"]
        assert "test" not in new["result"]


def test_nothing_held_out_is_refused_by_a_trial_itself(tmp_path):
    base = config.load("digits-backprop", [("data.limit", 20), ("data.validation", 0.01)])
    with pytest.raises(ConfigError, match=r"holds out none of 20 images"):
        trials.trial(base, tmp_path / "t")
    assert torch.is_grad_enabled()
