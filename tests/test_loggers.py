"""Loggers: a run's rows where people look, once each, also over resumes and failures."""

import importlib.util
import json
import struct
import subprocess
import sys

import pytest

from targetprop.commands import main as cli
from targetprop.training import loggers
from targetprop.training.logging import read_metrics

TINY = ["--network.name", "mlp", "--network.channels", "[8]", "--measure_every", 0]
TINY += ["--data.limit", 100, "--data.batch_size", 20, "--log_every", 1, "--epochs", 3]


def run(*words):
    return cli.main([str(word) for word in words])


def rows(folder):
    """What every logger must have: (kind, step, loss) of every row of the metrics."""
    return [
        (row["kind"], row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl")
    ]


class Memory:
    """A logger that keeps its rows, and fails when told to."""

    begun, kept, ended = [], [], []
    fails_at = None

    def __init__(self, folder, config, header):
        if self.fails_at == "begin":
            raise OSError("no way there")
        self.header = header or {"logger": "memory", "run": str(folder)}
        self.begun.append(header)

    def log(self, index, row):
        if self.fails_at == row["step"]:
            raise TimeoutError("no answer\nfor long")
        assert index == len(self.kept)
        self.kept.append((row["kind"], row["step"], row["loss"]))

    def finish(self, error):
        if self.fails_at == "finish":
            raise OSError("gone")
        self.ended.append(error)


@pytest.fixture
def memory(monkeypatch):
    """Memory, afresh, under the name of a logger whose package is always there."""

    class Fresh(Memory):
        begun, kept, ended = [], [], []

    monkeypatch.setitem(loggers.LOGGERS, "memory", Fresh)
    monkeypatch.setattr(loggers, "demand", lambda name: None)
    return Fresh


def test_every_row_goes_there_once_over_a_resume(memory, tmp_path):
    folder = tmp_path / "run"
    words = ["train", "digits-backprop", *TINY, "--steps", 7, "--out", folder]
    assert run(*words, "--logger", "memory") == 0
    assert memory.kept == rows(folder)
    assert run("resume", folder, "--steps", 12) == 0  # with the logger of before
    assert memory.begun == [None, {"logger": "memory", "run": str(folder)}]
    assert memory.ended == [None, None]
    ours = rows(folder)
    assert set(memory.kept) >= set(ours)
    assert len({row[:2] for row in memory.kept}) == len(memory.kept)
    count = len(memory.kept)
    assert run("resume", folder, "--steps", 15, "--epochs", 9, "--logger", "none") == 0
    assert len(memory.kept) == count


def test_rows_that_are_computed_anew_are_not_sent_again(memory, tmp_path):
    folder = tmp_path / "run"
    words = ["train", "digits-backprop", *TINY, "--steps", 12, "--out", folder]
    assert run(*words, "--logger", "memory") == 0
    before = list(memory.kept)
    (folder / "last.pt").unlink()  # as if killed after previous.pt
    with open(folder / loggers.LEDGER, "a") as file:
        file.write('{"kind": "tra')  # and torn
    assert run("resume", folder, "--auto") == 0
    assert [row for row in memory.kept if row not in before] == []
    assert set(rows(folder)) <= set(memory.kept)
    for line in (folder / loggers.LEDGER).read_text().splitlines():
        json.loads(line)


def test_a_logger_that_joins_later_gets_the_rows_so_far(memory, tmp_path):
    folder = tmp_path / "run"
    assert run("train", "digits-backprop", *TINY, "--steps", 5, "--out", folder) == 0
    assert not memory.begun
    assert run("resume", folder, "--steps", 8, "--logger", "memory") == 0
    assert memory.kept == rows(folder)


def test_a_logger_that_fails_stops_no_training_and_is_made_up_for(memory, tmp_path, capsys):
    folder = tmp_path / "run"
    memory.fails_at = 3
    words = ["train", "digits-backprop", *TINY, "--steps", 7, "--out", folder]
    assert run(*words, "--logger", "memory") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the logger memory failed (TimeoutError: no answer for long); training") == 1
    assert len(memory.kept) == 3
    memory.fails_at = None
    assert run("resume", folder, "--steps", 9) == 0
    assert memory.kept == rows(folder)


def test_a_logger_that_cannot_end_or_begin(memory, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["train", "digits-backprop", *TINY, "--steps", 3, "--out", folder]
    memory.fails_at = "begin"
    assert run(*words, "--logger", "memory") == 2  # it was asked for
    said = " ".join(capsys.readouterr().err.split())
    assert f"no way there); mend that and go on with: targetprop resume {folder}" in said
    memory.fails_at = "finish"
    assert run("resume", folder, "--logger", "memory") == 0
    assert "(OSError: gone); the run itself is whole." in " ".join(capsys.readouterr().err.split())
    memory.fails_at = "begin"
    assert run("resume", folder, "--steps", 5) == 0  # it was not
    assert "training goes on without it" in " ".join(capsys.readouterr().err.split())


def test_how_a_run_ended_is_told(memory, tmp_path):
    words = ["digits-backprop", *TINY, "--out", tmp_path / "run", "--logger", "memory"]
    assert run("train", *words, "--optimizer.lr", 1e30) == 3
    (error,) = memory.ended
    assert "is not finite" in str(error)


def test_a_sweep_logs_every_cell(memory, tmp_path):
    words = ["digits-backprop", *TINY, "--steps", 2, "--seeds", 2, "--out", tmp_path / "sweep"]
    assert run("sweep", *words, "--logger", "memory") == 0
    cell = tmp_path / "sweep/digits-backprop/seed-1"
    assert cell.is_dir()
    assert loggers.name_of(cell) == "digits-backprop/seed-1"
    assert len(memory.begun) == len(memory.ended) == 2


def test_another_run_in_a_cleared_folder_begins_anew(memory, tmp_path):
    folder = tmp_path / "run"
    words = ["train", "digits-backprop", *TINY, "--steps", 3, "--out", folder]
    assert run(*words, "--logger", "memory") == 0
    for path in [*folder.glob("*.pt"), folder / "result.json", folder / "metrics.jsonl"]:
        path.unlink()
    memory.kept.clear()
    assert run(*words, "--logger", "memory") == 0
    assert memory.begun == [None, None]
    assert memory.kept == rows(folder)


@pytest.mark.parametrize("command", ["train", "resume", "sweep"])
def test_a_missing_package_is_named_before_anything_is_made(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = [] if command == "resume" else ["--out", tmp_path / "x"]
    assert run(command, "digits-backprop", *out, "--logger", "wandb") == 2
    assert "--logger wandb needs wandb; pip install 'targetprop[wandb]'." in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def wandb_records(path):
    """What a file of wandb holds: records in blocks of 32 KiB, each part with its length."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def wandb_rows(folder):
    """(its own step, values) of every row in the offline runs of a folder, and their names."""
    found, names = [], set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("history"):
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                found.append((record.history.step.num, values))
            if record.HasField("run"):
                names.add((record.run.run_id, record.run.display_name))
    return found, names


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """wandb without a network; processes of their own, as its service outlives a run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing would answer
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return tmp_path / "run"


def process(*words):
    done = subprocess.run(
        [sys.executable, "-m", "targetprop", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_wandb_has_every_row_once_in_one_run_over_a_resume(offline):
    words = ["train", "digits-ldrl", *TINY, "--steps", 5, "--out", offline]
    process(*words, "--logger", "wandb")
    process("resume", offline, "--steps", 8)
    found, names = wandb_rows(offline)
    assert len(names) == 1
    assert names.pop()[1] == f"{offline.parent.name}/run"
    assert [step for step, _ in found] == list(range(len(found)))
    taken = [
        (kind, values["step"], values[f"{kind}/loss"])
        for _, values in found
        for kind in ("train", "validation", "test")
        if f"{kind}/loss" in values
    ]
    assert len(taken) == len(found) == len({row[:2] for row in taken})
    assert set(rows(offline)) <= set(taken)
    assert any(key.startswith("train/mismatch/") for _, values in found for key in values)


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A store of MLflow in a file."""
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return uri


def test_mlflow_has_every_row_once_in_one_run_over_a_resume(store, tmp_path):
    folder = tmp_path / "run"
    words = ["train", "digits-ldrl", *TINY, "--steps", 5, "--out", folder]
    process(*words, "--logger", "mlflow")
    process("resume", folder, "--steps", 8, "--optimizer.lr", 0.001)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    (experiment,) = [e for e in client.search_experiments() if e.name == "targetprop"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == f"{tmp_path.name}/run"
    assert found.data.params["algorithm.name"] == "ldrl"
    assert found.data.tags["resumed.optimizer.lr"] == "0.001"
    taken = [
        (kind, point.step, point.value)
        for kind in ("train", "validation", "test")
        for point in client.get_metric_history(found.info.run_id, f"{kind}/loss")
    ]
    assert len(taken) == len({row[:2] for row in taken})
    assert set(rows(folder)) <= set(taken)
    assert any(name.startswith("train/mismatch/") for name in found.data.metrics)
