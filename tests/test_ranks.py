"""Several processes find what one finds: samples, layers and both shared out."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import targetprop as tp
import worlds
from cases import CASES, make
from targetprop.algorithms.sharing import assign
from targetprop.commands import main as cli
from targetprop.ranks import Group, Ranks
from targetprop.training import checkpoint, launch
from targetprop.training.logging import read_metrics

CARRIED = (
    "feedback_alignment",
    "direct_feedback_alignment",
    "kolen_pollack",
    "weight_mirror",
    "sign_symmetry",
)
WHOLE = ("backprop", "drl", "ddtp_linear", *CARRIED)  # do not train feedback layer by layer
PLACES = [(case, "lenet") for case in CASES] + [
    ("ldrl", "resnet18"),
    ("ldrl-sgd", "odd_convolutions"),
]
SPLIT = [place for place in PLACES if place[0].startswith("ldrl")]  # every solver


@pytest.fixture(scope="module")
def alone():
    found = {}

    def get(case, name):
        if (case, name) not in found:
            found[case, name] = worlds.train(case, name, worlds.ALONE)
        return found[case, name]

    return get


def differences(a, b, path=""):
    """(path, largest difference) of every tensor and number; keys must agree."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            yield from differences(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, torch.Tensor):
        yield path, (a.double() - b.double()).abs().max().item()
    else:
        # infinite before a first measurement, None where there is none
        yield path, 0.0 if a == b else abs(a - b)


@pytest.mark.parametrize(
    ("size", "layers"),
    [(2, 1), (2, 2), (4, 2), (3, 3)],
    ids=["data", "layers", "combined", "three along the layers"],
)
def test_many_processes_equal_one_to_1e_10(size, layers, alone, tmp_path):
    places = PLACES if layers == 1 else SPLIT
    assert set(worlds.codes(worlds.spawn(worlds.train_all, size, places, layers, tmp_path))) == {0}
    for case, name in places:
        found = torch.load(tmp_path / f"{case}-{name}.pt", weights_only=True)
        for path, difference in differences(alone(case, name), found):
            assert difference < 1e-10, (case, name, path)


def test_the_cases_move_all_weights(alone):
    net, _, _ = make("lenet")
    for case in CASES:
        moved = alone(case, "lenet")["net"]
        weights = {
            key: value
            for key, value in net.state_dict().items()
            if "forward" in key and "feedback" not in key
        }
        assert all((moved[key] - value).abs().max() > 1e-6 for key, value in weights.items())


@pytest.mark.parametrize("case", WHOLE)
def test_layers_are_shared_out_only_where_feedback_learns_layer_by_layer(case):
    net, _, _ = make("mlp")
    pair = Group()
    pair.size = 2
    with pytest.raises(ValueError, match="does not train its feedback layer by layer"):
        CASES[case](net).distribute(Ranks(layers=pair))


def test_layers_go_to_the_least_loaded_costliest_first():
    assert assign({"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.5}, 2) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert set(assign({"a": 1.0}, 3).values()) == {0}
    rng = random.Random(0)
    for _ in range(100):
        costs = {str(i): rng.random() for i in range(8)}
        loads = [0.0, 0.0, 0.0]
        for name, rank in assign(costs, 3).items():
            loads[rank] += costs[name]
        # Graham (1966)
        assert max(loads) <= sum(costs.values()) / 3 + max(costs.values()) * 2 / 3 + 1e-12


def test_parts_cover_everything_once():
    for size in range(1, 6):
        for count in range(12):
            parts = []
            for rank in range(size):
                group = Group()
                group.rank, group.size = rank, size
                parts += range(count)[group.part(count)]
            assert parts == list(range(count))


TINY = [
    "--network.channels",
    "[4]",
    "--data.limit",
    "200",
    "--data.batch_size",
    "20",
    "--log_every",
    "1",
]
TINY += ["--measure_every", "4", "--dtype", "float64", "--epochs", "3", "--checkpoint_every", "1"]


def run(size, *words, kill=None):
    return worlds.codes(worlds.spawn(worlds.program, size, [str(word) for word in words], kill))


def weights(folder):
    return checkpoint.load(folder / "last.pt")["net"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by (processes, layer ranks)."""
    found = {}

    def get(size, layers):
        if (size, layers) not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert set(
                run(size, "train", "digits-ldrl", *TINY, "--layer-ranks", layers, "--out", folder)
            ) == {0}
            found[size, layers] = folder
        return found[size, layers]

    return get


@pytest.mark.parametrize(("size", "layers"), [(2, 1), (2, 2), (4, 2)])
def test_the_program_trains_measures_and_tests_the_same_in_many_processes(size, layers, whole):
    one, many = whole(1, 1), whole(size, layers)
    assert {p.name for p in one.iterdir()} == {p.name for p in many.iterdir()}
    for path, difference in differences(weights(one), weights(many)):
        assert difference < 1e-10, path
    drop = ("seconds", "seconds_per_step")
    for a, b in zip(
        read_metrics(one / "metrics.jsonl"), read_metrics(many / "metrics.jsonl"), strict=True
    ):
        a, b = ({k: v for k, v in row.items() if k not in (*drop, "kind")} for row in (a, b))
        # an angle of nearly zero is known to half the digits
        for path, difference in differences(a, b):
            assert difference < (1e-4 if "angle" in path else 1e-9), path
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (one, many))
    assert a["test"]["accuracy"] == b["test"]["accuracy"]
    assert json.loads((many / "environment.json").read_text())["ranks"] == {
        "data": size // layers,
        "layers": layers,
    }


def rows(folder):
    """A run's metrics without times."""
    found = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in found]


def killed(folder, size, layers, kind, kills, seed):
    """Train, a random rank killed at random events, resuming each time; how often it was killed."""
    rng, done = random.Random(seed), 0
    words = ["train", "digits-ldrl", *TINY, "--layer-ranks", layers, "--out", folder]
    for _ in range(kills):
        # rank 0 writes
        victim = rng.randrange(size) if kind in ("step", "exchange") else 0
        count = {
            "step": rng.randrange(1, 8),
            "write": rng.randrange(1, 8),
            "exchange": rng.randrange(12, 36),
            "report": rng.randrange(1, 40),
            "lock": rng.randrange(2),
        }[kind]
        found = run(size, *words, kill=(victim, kind, count))
        if found == [0] * size:  # the run was over before the event came
            break
        assert found[victim] == -signal.SIGKILL
        assert set(found) <= {-signal.SIGKILL, launch.LOST}
        done += 1
        for path in folder.glob("*.pt"):
            checkpoint.load(path)  # raises if torn
        if (folder / "config.yaml").exists():
            words = ["resume", folder, "--layer-ranks", layers]
    assert set(run(size, *words)) == {0}
    assert not list(folder.glob(".*"))  # no part of a file, no lock
    json.loads((folder / "result.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(read_metrics(folder / "metrics.jsonl")) == len(lines)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    return done


FAULTS = [
    (1, 1, "step"),
    (1, 1, "write"),
    (1, 1, "report"),
    (1, 1, "lock"),
    (2, 1, "step"),
    (2, 1, "write"),
    (2, 1, "exchange"),
    (2, 2, "exchange"),
]


@pytest.mark.parametrize(("size", "layers", "kind"), FAULTS)
def test_kill_9_then_resume_gives_the_same_weights(size, layers, kind, whole, tmp_path):
    assert killed(tmp_path / "run", size, layers, kind, 2, seed=0) == 2
    assert equal(weights(tmp_path / "run"), weights(whole(size, layers)))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "layers", "kind"), FAULTS)
def test_a_hundred_kills(size, layers, kind, whole, tmp_path):
    kills = seed = 0
    while kills < 100:
        seed += 1
        kills += killed(tmp_path / str(seed), size, layers, kind, 3, seed)
        assert equal(weights(tmp_path / str(seed)), weights(whole(size, layers)))
        assert rows(tmp_path / str(seed)) == rows(whole(size, layers))


def test_resume_with_another_number_of_processes(whole, tmp_path):
    """2 ranks to 1, to 4 and back; the angle of float64 rounding is all that remains."""
    folder = tmp_path / "run"
    words = ["train", "digits-ldrl", *TINY, "--out", folder]
    for size, layers, count in ((2, 1, 5), (1, 1, 4), (2, 2, 4), (4, 2, 4), (2, 1, 3)):
        found = run(size, *words, "--layer-ranks", layers, kill=(0, "step", count))
        assert found[0] == -signal.SIGKILL
        words = ["resume", folder]
    assert set(run(1, "resume", folder)) == {0}
    for path, difference in differences(weights(whole(1, 1)), weights(folder)):
        assert difference < 1e-10, path


def start(*words):
    command = [sys.executable, "-m", "targetprop", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_rows(folder, count, process, seconds=60):
    limit = time.time() + seconds
    while len(read_metrics(folder / "metrics.jsonl")) < count and time.time() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


LONG = [
    "--network.channels",
    "[4]",
    "--data.batch_size",
    "20",
    "--log_every",
    "1",
    "--measure_every",
    "0",
]
LONG += ["--epochs", "1000", "--checkpoint_every", "1"]


def test_a_dead_rank_stops_the_others_with_one_message(tmp_path):
    folder = tmp_path / "run"
    process = start("train", "digits-ldrl", *LONG, "--devices", 2, "--out", folder)
    wait_for_rows(folder, 5, process)
    workers = [p for p in children(process.pid) if "RANK=1" in environment_of(p)]
    assert len(workers) == 1
    began = time.time()
    os.kill(workers[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert time.time() - began < 60
    assert process.returncode == 128 + signal.SIGKILL
    found = [line for line in error.splitlines() if line.startswith("targetprop")]
    assert len(found) == 1, error
    assert re.search(
        r"rank 1 was killed by signal 9 \(SIGKILL\) and the other ranks were stopped; go on with",
        found[0],
    )
    assert "Traceback" not in error
    checkpoint.load(folder / "last.pt")


@pytest.mark.parametrize("devices", [1, 2])
def test_sigterm_saves_and_exits_with_143(devices, tmp_path):
    folder = tmp_path / "run"
    process = start(
        "train",
        "digits-ldrl",
        *LONG,
        "--checkpoint_every",
        0,
        "--devices",
        devices,
        "--out",
        folder,
    )
    wait_for_rows(folder, 5, process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    step = int(re.search(r"stopped at step (\d+); go on with: targetprop resume", error).group(1))
    assert error.count("targetprop resume") == 1
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] == step > 0


def test_ranks_whose_launcher_is_killed_save_and_end(tmp_path):
    folder = tmp_path / "run"
    words = ["train", "digits-ldrl", *LONG, "--checkpoint_every", 0, "--devices", 2]
    process = start(*words, "--out", folder)
    wait_for_rows(folder, 5, process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=60)  # until the ranks have closed the pipes too
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] > 0
    limit = time.monotonic() + 20
    while any(map(runs, ranks)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(runs, ranks))


def runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def listening(pid):
    """The addresses at which a process listens, from Linux' tables."""
    own = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(os.readlink(file))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.append(words[1].rpartition(":")[0])
    return found


def test_one_machine_listens_on_loopback_only(tmp_path):
    folder = tmp_path / "run"
    process = start("train", "digits-ldrl", *LONG, "--devices", 2, "--out", folder)
    wait_for_rows(folder, 5, process)
    heard = [a for pid in (process.pid, *children(process.pid)) for a in listening(pid)]
    process.terminate()
    process.communicate(timeout=60)
    assert heard  # Gloo's
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert set(heard) <= loopback | {"0000000000000000FFFF00000100007F"}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one and WORLD_SIZE=2 number no process"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 number no process"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "RANK=0 and WORLD_SIZE=-2 number no process"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"MASTER_ADDR": "localhost"}, "MASTER_PORT is not"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "PORT"}, "nobody listens at localhost"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "TAKEN"}, "no meeting place of this program"),
        (
            {"MASTER_ADDR": "localhost", "MASTER_PORT": "TAKEN", "RANK": "0"},
            "is taken by another program",
        ),
        (
            {"MASTER_ADDR": "localhost", "MASTER_PORT": "PORT", "RANK": "0"},
            "rank 1 of 2 did not come to localhost",
        ),
    ],
)
def test_variables_and_ports_of_others_are_one_sentence(
    variables, sentence, tmp_path, monkeypatch, capfd
):
    with socket.create_server(("", 0)) as silent:
        ports = {"PORT": str(worlds.free_port()), "TAKEN": str(silent.getsockname()[1])}
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"RANK": "1", "WORLD_SIZE": "2"} | variables).items():
            monkeypatch.setenv(name, ports.get(value, value))
        began = time.monotonic()
        words = ["train", "digits-ldrl", "--timeout", "2", "--out", str(tmp_path / "run")]
        assert cli.main(words) == 2
    assert time.monotonic() - began < 10
    error = capfd.readouterr().err
    assert sentence in error
    assert error.count("targetprop") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_world_of_one_left_over_is_no_world(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    words = ["train", "digits-ldrl", *TINY, "--steps", "2", "--out", tmp_path / "run"]
    assert cli.main([str(word) for word in words]) == 0


def test_nodes_of_two_commands_do_not_meet(tmp_path):
    place = ["--nodes", 2, "--timeout", 20, "--rendezvous", f"localhost:{worlds.free_port()}"]
    nodes = [
        start("train", preset, *TINY, *place, "--out", tmp_path / preset)
        for preset in ("digits-ldrl", "digits-backprop")
    ]
    errors = [node.communicate(timeout=100)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [2, 2]
    assert sorted("has another command" in error for error in errors) == [False, True]
    assert sorted("of 2 did not come" in error for error in errors) == [False, True]


@pytest.mark.slow
def test_two_nodes_find_each_other_and_train_what_one_process_does(whole, tmp_path):
    words = ["train", "digits-ldrl", *TINY, "--out", tmp_path / "run", "--nodes", 2]
    nodes = [
        start(*words, "--rendezvous", f"localhost:{port}")
        for port in [worlds.free_port()]
        for _ in range(2)
    ]
    for node in nodes:
        _, error = node.communicate(timeout=100)
        assert node.returncode == 0, error
    for path, difference in differences(weights(whole(1, 1)), weights(tmp_path / "run")):
        assert difference < 1e-10, path


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    words = [str(w) for w in ("train", "digits-ldrl", *TINY, "--out", folder)]
    write, saved = checkpoint.write_atomically, []

    def full(path, fill):
        if path.name == "last.pt":
            if len(saved) == 3:
                raise OSError(28, "No space left on device", str(path))
            saved.append(path)
        write(path, fill)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "0"], "--devices 0 is out of range"),
        (["--layer-ranks", "2"], "--layer-ranks 2 does not divide the 1 processes"),
        (
            ["--devices", "4", "--layer-ranks", "3"],
            "--layer-ranks 3 does not divide the 4 processes",
        ),
        (["--nodes", "2"], "--nodes 2 needs --rendezvous HOST:PORT"),
    ],
)
def test_bad_layouts_are_refused_before_anything_starts(words, message, tmp_path, capsys):
    assert cli.main(["train", "digits-ldrl", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_split_is_refused(tmp_path):
    found = run(
        2, "train", "digits-ldrl", *TINY, "--data.batch_size", 21, "--out", tmp_path / "run"
    )
    assert found == [2, 2]
    assert not (tmp_path / "run").exists()


def test_the_cause_of_an_end_is_told_from_its_victims():
    assert launch.verdict({0: 4, 1: -9})[0] == 137
    assert "rank 1 was killed by signal 9" in launch.verdict({0: 4, 1: -9})[1]
    assert launch.verdict({0: 2, 1: 4}) == (2, None)
    assert launch.verdict({0: 143, 1: 143}) == (143, None)
    assert "rank 1 was" in launch.verdict({0: -15, 1: -9})[1]
    assert "lost contact" in launch.verdict({0: 4})[1]


def test_noise_does_not_depend_on_the_number_of_processes():
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(6, 3, 4, 5).contiguous(memory_format=form)
        whole = tp.feedback.solver.noise_like(x, torch.Generator().manual_seed(3))
        parts = []
        for rank in range(3):
            group = Group()
            group.rank, group.size = rank, 3
            parts.append(
                tp.feedback.solver.noise_like(x[:2], torch.Generator().manual_seed(3), peers=group)
            )
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_soak_of_2000_steps_keeps_memory_and_files_flat(devices, tmp_path):
    folder, seen = tmp_path / "run", []
    words = [
        "--data.batch_size",
        64,
        "--steps",
        2000,
        "--epochs",
        1000,
        "--checkpoint_every",
        50,
        "--measure_every",
        50,
    ]
    process = start("train", "digits-ldrl", *words, "--devices", devices, "--out", folder)
    while process.poll() is None:
        rows = read_metrics(folder / "metrics.jsonl")
        workers = children(process.pid) if devices > 1 else [process.pid]
        worker = next((p for p in workers if devices == 1 or "RANK=0" in environment_of(p)), None)
        if rows and worker is not None and process.poll() is None:
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{worker}/status").read_text())
            if found:  # else it is ending
                seen.append(
                    (
                        rows[-1]["step"],
                        int(found.group(1)),
                        len(list(Path(f"/proc/{worker}/fd").iterdir())),
                    )
                )
        time.sleep(0.1)
    assert process.returncode == 0, process.communicate()
    early = [row for row in seen if 500 <= row[0] < 900]
    late = [row for row in seen if 1600 <= row[0] < 1990]
    assert min(len(early), len(late)) >= 5
    memory = [statistics.median(row[1] for row in part) for part in (early, late)]
    # a checkpoint being written is one more
    files = [statistics.median(row[2] for row in part) for part in (early, late)]
    print(f"{devices} processes: {memory[0]} to {memory[1]} KiB, {files[0]} to {files[1]} files")
    assert memory[1] < 1.02 * memory[0]
    assert files[1] <= files[0]


def environment_of(pid):
    """NAME=VALUE strings; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return []
