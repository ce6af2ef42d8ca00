"""Terminals, pipes, orders of words, sweeps of runs alike: nothing lies and nothing breaks."""

import errno
import io
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing import event_accumulator

from targetprop.commands import data, main, terminal
from targetprop.training import logging, sweep
from targetprop.training.config import ConfigError
from targetprop.training.logging import Metrics, read_metrics

TINY = ["--network.name", "mlp", "--network.channels", "[8]", "--measure_every", "0"]
TINY += ["--epochs", "1", "--steps", "2", "--data.limit", "200"]


def test_settings_may_stand_before_the_preset(tmp_path):
    words = ["train", "--optimizer.lr", "0.01", "digits-backprop", *TINY, "--out", str(tmp_path)]
    assert main.main(words) == 0
    assert "lr: 0.01" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_terminal_bears_what_is_said(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    terminal.settle()
    print("8×8, ω and θᵀ – 50 %")
    sys.stdout.flush()
    assert written.getvalue().startswith(b"8")


def test_a_reader_that_goes_away_stops_nothing():
    class Gone:
        def write(self, text=""):
            raise BrokenPipeError

        flush = write

    stream = terminal.Patient(Gone())
    assert stream.write("words") == 5
    stream.flush()


def test_what_could_not_be_written_is_said_at_the_end(monkeypatch):
    class Full:
        closed = False

        def write(self, text=""):
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = write

    monkeypatch.setattr(sys, "stdout", terminal.Patient(Full()))
    print("words")  # the work goes on
    assert "No space left on device" in terminal.unwritten()


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from targetprop_command import main
sys.exit(main())
"""


def test_ctrl_c_within_the_imports_is_one_sentence():
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr == "targetprop: stopped before it began; nothing was lost.\n"


def test_names_cannot_speak_to_the_terminal(tmp_path, capsys):
    assert main.main(["evaluate", str(tmp_path / "\x1b[31mred")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b[31mred" in said


def test_the_unforeseen_is_one_sentence_and_a_log(monkeypatch, capsys):
    def broken(args, words):
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(data, "run", broken)
    assert main.main(["data", "list"]) == main.UNFORESEEN == 70
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    log = said.split("its traceback is in ")[1].split(",")[0]
    with open(log) as file:
        assert "ZeroDivisionError: nobody thought of this" in file.read()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_running_out_of_memory_is_said(error, monkeypatch, capsys):
    def broken(args, words):
        raise error

    monkeypatch.setattr(data, "run", broken)
    assert main.main(["data", "list"]) == 2
    assert "out of memory" in capsys.readouterr().err


def test_a_sweep_tells_presets_and_files_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-backprop.yaml").write_text("preset: digits-backprop\n")
    words = [*TINY, "--seeds", "1", "--out", "s"]
    assert main.main(["sweep", "digits-backprop", "digits-backprop.yaml", *words]) == 0
    found = sorted(path.parent.parent.name for path in tmp_path.rglob("result.json"))
    assert found == ["digits-backprop", "digits-backprop.yaml"]
    assert main.main(["sweep", "digits-backprop", "digits-backprop", *words]) == 2
    assert "named twice" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="seed would change nothing"):
        sweep.cells(["digits-backprop"], 1, [("seed", "7")], tmp_path)


def test_a_run_that_diverges_does_not_stop_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("preset: digits-backprop\noptimizer: {lr: 1.0e+6}\n")
    words = [*TINY[:-4], "--epochs", "1", "--seeds", "1", "--out", "s"]
    assert main.main(["sweep", "bad.yaml", "digits-backprop", *words]) == main.DIVERGED
    said = capsys.readouterr()
    assert "bad/seed-0 diverged" in said.out
    assert "the table is of the other runs" in said.err
    written = json.loads((tmp_path / "s/sweep.json").read_text())
    assert [line["name"] for line in written["results"]] == ["digits-backprop"]


def test_a_damaged_result_is_passed_over_and_written_anew(tmp_path, capsys):
    words = [*TINY, "--seeds", "1", "--out", str(tmp_path)]
    assert main.main(["sweep", "digits-backprop", *words]) == 0
    run = tmp_path / "digits-backprop/seed-0"
    for content in (b"", b'{"steps": 1', b"[]", b'{"test": 3}', b"\xff\xfe"):
        (run / "result.json").write_bytes(content)
        assert main.main(["compare", str(run), "--out", str(tmp_path / "c.png")]) == 0
        assert "is damaged" in capsys.readouterr().err
        assert main.main(["sweep", "digits-backprop", *words]) == 0
        assert json.loads((run / "result.json").read_text())["steps"] == 2


@pytest.mark.parametrize("place", ["nowhere", "host:0", "host:65536", "host:port", ":29500"])
def test_a_rendezvous_that_is_none_is_refused(place, capsys):
    words = ["train", "digits-backprop", "--nodes", "2", "--rendezvous", place]
    assert main.main(words) == 2
    assert f"--rendezvous {place} is no HOST:PORT" in capsys.readouterr().err


def curve(folder, name="train/loss"):
    """(step, value, time) of the points of a run's curve, as TensorBoard orders them."""
    read = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return [(point.step, point.value, point.wall_time) for point in read.Scalars(name)]


def write(metrics, steps):
    for step in steps:
        metrics.write("train", step, loss=1 / (1 + step), accuracy=0.5, seconds=10.0 * step)


def test_deleted_curves_stop_no_training_and_are_drawn_anew(tmp_path):
    metrics = Metrics(tmp_path)
    write(metrics, range(2))
    shutil.rmtree(tmp_path / "tensorboard")
    write(metrics, range(2, 4))
    metrics.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert [step for step, _, _ in curve(tmp_path)] == [0, 1, 2, 3]


def test_curves_of_a_resumed_run_are_in_order_though_the_clock_was_set_back(tmp_path, monkeypatch):
    first = Metrics(tmp_path)
    write(first, range(4))
    first.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    again = Metrics(tmp_path, step=2)  # from the checkpoint of step 2: rows 2 and 3 come anew
    write(again, range(2, 5))
    again.close()
    steps, values, times = zip(*curve(tmp_path), strict=True)
    assert steps == (0, 1, 2, 3, 4)
    assert values == pytest.approx([1 / (1 + step) for step in steps])
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([10.0] * 4)


def test_a_run_outlives_its_terminal(tmp_path):
    """As under nohup: the terminal goes, SIGHUP is ignored, and the end is a good one."""
    terminal_of_user, ours = pty.openpty()
    words = ["train", "digits-backprop", *TINY, "--steps", "40", "--log_every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "targetprop", *words, "--out", str(tmp_path / "run")],
        stdin=subprocess.DEVNULL,
        stdout=ours,
        stderr=ours,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        start_new_session=True,
    )
    os.close(ours)
    limit = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    os.close(terminal_of_user)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "run" / "curves.png").exists()


def test_names_that_nobody_can_write_are_refused(capsys):
    for name, sentence in (("b\udcff", "is no UTF-8"), ("~nosuchuser/x", "home directory")):
        assert main.main(["train", "digits-backprop", *TINY, "--out", name]) == 2
        assert sentence in capsys.readouterr().err


def test_a_git_of_another_encoding_stops_nothing(tmp_path, monkeypatch):
    git = tmp_path / "git"
    git.write_bytes(b"#!/bin/sh\nprintf 'caf\\351\\n'\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert logging.commit().startswith("caf")


def test_a_missing_compiler_is_one_sentence(tmp_path):
    words = [
        "train",
        "digits-backprop",
        *TINY,
        "--compile",
        "default",
        "--out",
        str(tmp_path / "r"),
    ]
    places = {"CXX": "/nonexistent", "CC": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "targetprop", *words],
        env=os.environ | places,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert "finds no working C++ compiler" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_word_that_is_none_of_a_few_is_told_which_they_are(capsys):
    assert main.main(["train", "digits-backprop", "--compile", "true"]) == 2
    said = capsys.readouterr().err
    assert "expected one of 'off', 'default', 'max-autotune-no-cudagraphs'." in said
