"""No run is reported as another, and none is lost: folders, checkpoints and results of two runs."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from targetprop.commands import main as cli
from targetprop.experiments.cells import Place, cell
from targetprop.training import checkpoint, runner
from targetprop.training.files import FileError
from targetprop.training.logging import is_row, read_result

TINY = ["--network.name", "mlp", "--network.channels", "[8]", "--data.limit", "60"]
TINY += ["--data.batch_size", "20", "--measure_every", "0", "--log_every", "1", "--device", "cpu"]


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of 2 steps and one of another seed."""
    root = tmp_path_factory.mktemp("made")
    for seed in (0, 5):
        words = ["train", "digits-ldrl", *TINY, "--steps", "2", "--seed", seed]
        assert run(*words, "--out", root / f"seed-{seed}") == 0
    return root


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made / "seed-0", tmp_path / "base")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(capsys, *words):
    assert run(*words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--optimizer.lr", "9"), ("--steps", "1"), ("--optimizer.momentum", "0.5")]
)
def test_settings_that_would_train_nothing_leave_a_finished_run_as_it_is(base, words, capsys):
    before = contents(base)
    assert "would change nothing; give more --epochs" in refused(capsys, "resume", base, *words)
    assert contents(base) == before
    assert run("resume", base) == 0  # nothing asked, nothing done
    assert contents(base) == before


@pytest.mark.parametrize("command", ["resume", "train"])
def test_a_finished_run_whose_checkpoints_are_gone_is_not_begun_anew(base, command, capsys):
    for path in base.glob("*.pt"):
        path.unlink()
    before = contents(base)
    words = [base] if command == "resume" else ["digits-ldrl", "--out", base]
    assert "whose checkpoints are gone" in refused(capsys, command, *words, "--steps", "1")
    assert contents(base) == before


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network.activation", "relu"),
        ("data.name", "mnist"),
        ("optimizer.lr", "5.0"),
        ("seed", "3"),
    ],
)
def test_weights_are_looked_at_as_they_were_trained(base, command, key, value, capsys, tmp_path):
    more = ["--format", "pt2", "--out", tmp_path / "a.pt2"] if command == "export" else []
    assert f"{key}={value} is not that of the run" in refused(
        capsys, command, base, f"--{key}", value, *more
    )


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_another_runs_checkpoint_is_not_taken_for_its_own(made, base, command, capsys, tmp_path):
    shutil.copy(made / "seed-5" / "last.pt", base / "last.pt")
    more = ["--format", "pt2", "--out", tmp_path / "a.pt2"] if command == "export" else []
    assert "is of another run" in refused(capsys, command, base, *more)


def test_files_of_a_sweep_keep_folders_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, preset in (("x/y", "digits-backprop"), ("x-y", "digits-ldrl")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.yaml").write_text(f"preset: {preset}\n")
    said = refused(capsys, "sweep", "x/y/a.yaml", "x-y/a.yaml", "--seeds", 1)
    assert "would share the folder x-y-a.yaml" in said
    said = refused(capsys, "sweep", "x/y/a.yaml", "./x/y/a.yaml", "--seeds", 1)
    assert "is named twice" in said
    assert not (tmp_path / "sweep").exists()


def test_a_sweeps_cells_are_whole_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "digits-backprop", "--seeds", 1, *TINY, "--steps", 2]
    assert run(*words) == 0
    folder = tmp_path / "sweep" / "digits-backprop" / "seed-0"
    (folder / "environment.json").write_text("{")
    assert run(*words) == 0  # the results stand by themselves
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    (folder / "last.pt").rename(folder / "previous.pt")
    assert run(*words) == 0
    again, before = json.loads((folder / "result.json").read_text()), json.loads(result)
    assert {**again, "seconds_per_step": 0} == {**before, "seconds_per_step": 0}
    (folder / "config.yaml").unlink()
    assert "result without its config.yaml" in refused(capsys, *words, "--optimizer.lr", "1e-5")


@pytest.mark.parametrize(
    "change",
    [
        {"test": {"accuracy": 37.0}}, {"test": {"accuracy": float("nan")}}, {"steps": True},
        {"steps": 0}, {"seconds_per_step": 0}, {"seconds_per_step": float("inf")},
        {"test": {"accuracy": True}}, {"test": {"accuracy": -0.1}},
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_is_none(tmp_path, change):
    fine = {"steps": 2, "seconds_per_step": 0.1, "test": {"accuracy": 0.5}}
    (tmp_path / "result.json").write_text(json.dumps(fine))
    assert read_result(tmp_path) == fine
    (tmp_path / "result.json").write_text(json.dumps({**fine, **change}))
    assert read_result(tmp_path) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"angle": [1, 2]}, {"angle": {"l": "x"}}, {"angle": {"l": None}}, {"angle": {"\ud800": 1}},
        {"seconds": "abc"}, {"seconds": float("nan")}, {"step": -(10**19)}, {"loss": True},
        {"mismatch": {"l": {}}}, {"iterations": 3},
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_is_none(odd):
    fine = {"kind": "train", "step": 1, "loss": 2.0, "accuracy": 0.1, "seconds": 0.5}
    assert is_row({**fine, "angle": {"l": 1.0}, "mismatch": {"l": float("inf")}})
    assert not is_row({**fine, **odd})


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 10**6}, {"epoch": 2**39}, {"step": 50}, {"seconds": -1e300}, {"best": 5.0},
        {"batch": -1}, {"step": True},
    ],
)  # fmt: skip
def test_progress_that_cannot_be_is_refused(base, change, capsys):
    state = checkpoint.load(base / "last.pt")
    state["progress"] |= change
    checkpoint.save(base / "last.pt", {k: v for k, v in state.items() if k != "format"})
    assert "its progress is not that of this run" in refused(capsys, "resume", base, "--steps", "5")


def loops(state):
    own: list = []
    own.append(own)
    return {**state, "algorithm": own}


def sparse(state):
    return {**state, "net": {k: v.to_sparse() for k, v in state["net"].items()}}


@pytest.mark.parametrize("spoil", [loops, sparse])
def test_checkpoints_of_what_no_run_writes_are_refused(base, spoil, capsys):
    state = spoil(checkpoint.load(base / "last.pt"))
    checkpoint.save(base / "last.pt", {k: v for k, v in state.items() if k != "format"})
    assert "use another" in refused(capsys, "resume", base, "--steps", "5")
    assert "use another" in refused(capsys, "evaluate", base)


@pytest.mark.parametrize(
    "content", ["{}", '{"settings": 1, "result": {}}', '{"settings": {}, "result": {}}', "[]"]
)
def test_what_is_no_cell_is_one_sentence(tmp_path, content):
    place = Place(tmp_path, "smoke")
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "cell.json").write_text(content)
    with pytest.raises(FileError, match=r"cell\.json"):
        cell(place, "a", {}, lambda folder: {})


def test_a_cell_is_computed_by_one_process_at_a_time(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder):
        begun.set()
        assert go_on.wait(20)
        return {"by": "the first"}

    place = Place(tmp_path, "smoke")
    first = threading.Thread(target=cell, args=(place, "a", {}, slow))
    first.start()
    assert begun.wait(20)
    code = (
        "from pathlib import Path; from targetprop.experiments.cells import Place, cell;"
        f"cell(Place(Path({str(tmp_path)!r}), 'smoke'), 'a', {{}}, lambda folder: {{'by': 'me'}})"
    )
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    go_on.set()
    first.join()
    assert second.returncode
    assert "is written by another process" in second.stderr
    kept = cell(place, "a", {}, lambda folder: {"by": "nobody"})
    assert kept == {"by": "the first"}


def test_a_users_module_that_exits_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "exits_early.py").write_text("import sys\n\n\ndef make(*_):\n    sys.exit(0)\n")
    said = refused(capsys, "train", "digits-backprop", "--network.name", "exits_early:make")
    assert "could not be made" in said


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_nobody(tmp_path, streams):
    out = tmp_path / "run"
    words = " ".join(["train", "digits-backprop", *TINY, "--steps", "1", "--out", str(out)])
    words = words.replace("[8]", "'[8]'")
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m targetprop {words} {streams}"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (out / "result.json").exists()


def test_no_home_and_foreign_backends_are_no_traceback(tmp_path):
    own = ("TARGETPROP_DATA", "MPLBACKEND")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    for more, words, sentence in (
        ({"TARGETPROP_DATA": "~nosuchuser/d"}, ["data", "check", "mnist"], "~nosuchuser"),
        ({}, ["data", "check", "mnist", "--data-dir", "~nosuchuser/x"], "~nosuchuser"),
        ({"MPLBACKEND": "foo"}, ["train", "digits-backprop", *TINY, "--steps", "1"], None),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "targetprop", *words],
            env=environment | more, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == (2 if sentence else 0), done.stderr
        assert sentence is None or sentence in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep", "digits-ldrl", "--minutes", "nan"], "--minutes nan"),
        (["tune", "digits-ldrl", "--minutes", "-1"], "--minutes -1"),
        (["reproduce", "theory", "--minutes", "nan"], "--minutes nan"),
        (["train", "digits-ldrl", "--optimizer.weight_decay", ".inf"], "weight_decay"),
        (["train", "digits-ldrl", "--data.augment", "crop", "--data.padding", "9"], "8×8"),
        (["train", "digits-ldrl", "--out", ""], "a path is empty"),
        (["train", "digits-ldrl", "--data-dir", ""], "a path is empty"),
        (["bench", "plain", "--data", "digits", "--batch-size", "100000"], "training images"),
        (["bench", "plain", "--data", "digits", "--lr", "nan"], "lr nan"),
        (["bench", "plain", "--data", "digits", "--device", "meta"], "device=meta"),
        (["bench", "plain", "--data", "digits", "--threads", "0"], "threads 0"),
        (["bench", "plain", "--data", "digits", "--channels", "0"], "channels 0"),
        (["bench", "plain", "--data", "digits", "--steps", "15"], "--steps 15"),
        (["scaling", "--data", "digits", "--steps", "0"], "--steps 0"),
        (["scaling", "--data", "digits", "--threads", "-1"], "threads -1"),
        (["tune", "digits-ldrl", "--storage", "sqlite:///c%41.db"], "name the file without"),
        (["tune", "digits-ldrl", "--storage", "sqlite:///c?timeout=5.db"], "name the file without"),
    ],
)
def test_values_out_of_range_are_refused_at_once(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *words)


def test_runs_are_compared_once(base, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is named twice" in refused(capsys, "compare", base, "base")


def test_a_signal_that_comes_while_the_run_is_tested_is_heeded(tmp_path, monkeypatch, capsys):
    import signal

    finish = runner.run.__globals__["finish"]

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*args)

    monkeypatch.setitem(runner.run.__globals__, "finish", interrupted)
    words = ["train", "digits-backprop", *TINY, "--steps", "1", "--out", tmp_path / "run"]
    assert run(*words) == 128 + signal.SIGTERM
    assert "has come to its end" in capsys.readouterr().err
    assert (tmp_path / "run" / "result.json").exists()


def test_export_keeps_off_checkpoints_and_what_is_no_file(base, capsys, tmp_path):
    words = ["export", base, "--format", "pt2", "--force", "--out"]
    before = contents(base)
    assert "a checkpoint's name" in refused(capsys, *words, base / "last.pt")
    os.mkfifo(tmp_path / "pipe.pt2")
    assert "no regular file" in refused(capsys, *words, tmp_path / "pipe.pt2")
    assert contents(base) == before
