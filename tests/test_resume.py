"""Going on with a run: settings take effect or are refused, and nonsense is one sentence."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targetprop.commands import main as cli
from targetprop.training import checkpoint

TINY = ["--network.name", "mlp", "--network.channels", "[8]", "--measure_every", 0]
TINY += ["--data.limit", 200, "--data.batch_size", 20, "--data.validation", 0]


def run(*words):
    return cli.main([str(word) for word in words])


def last(folder):
    return checkpoint.load(folder / "last.pt")


def same(a, b):
    return all(torch.equal(a["net"][name], b["net"][name]) for name in b["net"])


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of 10 of its 20 steps, at a constant rate."""
    folder = tmp_path_factory.mktemp("half") / "run"
    words = ["--schedule.name", "constant", "--epochs", 2, "--steps", 7]
    assert run("train", "digits-ldrl", *TINY, *words, "--out", folder) == 0
    return folder


@pytest.fixture
def cut(half, tmp_path):
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def test_more_steps_from_within_an_epoch_equal_one_run(cut, tmp_path):
    assert run("resume", cut, "--steps", 13) == 0
    assert run("resume", cut, "--steps", 20) == 0
    words = ["--schedule.name", "constant", "--epochs", 2]
    assert run("train", "digits-ldrl", *TINY, *words, "--out", tmp_path / "whole") == 0
    assert same(last(cut), last(tmp_path / "whole"))
    assert last(cut)["progress"]["epoch"] == last(tmp_path / "whole")["progress"]["epoch"] == 2


def test_a_longer_cosine_goes_on_at_the_rates_of_the_longer_run_and_says_so(tmp_path, capsys):
    def rates(folder):
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [row["lr"] for row in rows if row["kind"] == "train"]

    words = [*TINY, "--log_every", 1, "--epochs", 3]
    assert run("train", "digits-backprop", *words, "--steps", 8, "--out", tmp_path / "a") == 0
    assert run("resume", tmp_path / "a", "--steps", 25) == 0
    assert "the 8 steps before had that of the run as it was" in capsys.readouterr().err
    assert run("train", "digits-backprop", *words, "--steps", 25, "--out", tmp_path / "b") == 0
    assert rates(tmp_path / "a")[8:] == rates(tmp_path / "b")[8:]
    assert len(rates(tmp_path / "a")) == 25


def test_new_rates_take_effect_and_are_kept(cut):
    assert run("resume", cut, "--steps", 9, "--optimizer.lr", 0.001, "--log_every", 1) == 0
    assert run("resume", cut, "--steps", 11) == 0
    rows = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows if row["kind"] == "train"][-4:] == [0.001] * 4
    assert "lr: 0.001" in (cut / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.name", "dtp"),
        ("algorithm.solver", "correlation"),
        ("network.channels", "[9]"),
        ("optimizer.name", "adam"),
        ("seed", "7"),
        ("data.batch_size", "10"),
        ("data.limit", "100"),
        ("data.validation", "0.5"),
        ("dtype", "float64"),
    ],
)
def test_what_the_state_depends_on_cannot_change(cut, key, value, capsys):
    before = (cut / "last.pt").read_bytes()
    assert run("resume", cut, "--steps", 9, f"--{key}", value) == 2
    assert f"{key}=" in capsys.readouterr().err
    assert (cut / "last.pt").read_bytes() == before
    assert key != "seed" or "seed: 7" not in (cut / "config.yaml").read_text()


def test_a_run_without_its_best_weights_says_so_and_ends(tmp_path, capsys):
    words = [*TINY[:-2], "--epochs", 1, "--out", tmp_path / "run"]
    assert run("train", "digits-backprop", *words) == 0
    (tmp_path / "run/best.pt").unlink()
    assert run("resume", tmp_path / "run", "--epochs", 2) == 0
    assert "best.pt is gone" in capsys.readouterr().err
    assert (tmp_path / "run/result.json").exists()


def test_killed_before_its_first_checkpoint_both_commands_go_on(half, tmp_path):
    for command in (["train", "digits-ldrl", *TINY, "--steps", 2, "--out"], ["resume"]):
        folder = tmp_path / command[0]
        folder.mkdir()
        shutil.copy(half / "config.yaml", folder)
        assert run(*command, folder) == 0
        assert (folder / "result.json").exists()


def test_rows_between_damaged_ones_stay(cut):
    path = cut / "metrics.jsonl"
    rows = [{"kind": "train", "step": step, "loss": 1.0, "accuracy": 0.5} for step in range(7)]
    lines = [json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join([lines[0], b"garbage", *lines[1:], b"\xff\xfe", b"[1]", b'{"st']))
    assert run("resume", cut, "--steps", 9) == 0
    kept = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["step"] for row in kept if row["kind"] == "train"][:7] == list(range(7))


def test_other_data_are_noticed(cut, capsys):
    state = last(cut)
    state.pop("format")
    state["data"]["sha256"] = "0" * 64
    checkpoint.save(cut / "last.pt", state)
    assert run("resume", cut, "--steps", 9) == 2
    assert "the data are not those of the run: sha256" in capsys.readouterr().err


def leaves(tree, path=()):
    """The places of all values in nested dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def replaced(tree, path, value):
    """The tree with another value at ``path``."""
    head, *rest = path
    new = dict(tree) if isinstance(tree, dict) else list(tree)
    new[head] = replaced(tree[head], rest, value) if rest else value
    return new


NONSENSE = [None, -1, 10**18, float("nan"), "word", [], {}, True, torch.tensor(float("nan"))]
NONSENSE += [torch.zeros(3), torch.zeros(1).expand(10**12), torch.zeros(2, dtype=torch.int8)]


def replace_and_resume(data, half, folder, capsys):
    """Replace any value of a run's checkpoint by any other, and resume it."""
    state = last(half)
    state.pop("format")
    places = [path for path in leaves(state) if path[0] not in ("config",)]
    place = data.draw(st.sampled_from(places))
    value = data.draw(st.sampled_from(NONSENSE))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(half, folder)
    checkpoint.save(folder / "last.pt", replaced(state, place, value))
    code = run("resume", folder, "--steps", 8)
    said = capsys.readouterr().err
    assert code in (0, 2, 3), (place, value, said)
    assert code == 0 or said.count("\n") == 1


LIMITS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=60, **LIMITS)
@given(data=st.data())
def test_any_value_of_a_checkpoint_replaced_is_a_run_or_one_sentence(data, half, tmp_path, capsys):
    replace_and_resume(data, half, tmp_path / "run", capsys)


@pytest.fixture(scope="module", params=["adam", "correlation", "kolen_pollack", "attached"])
def other_half(request, tmp_path_factory):
    """The same of a run whose solver, optimizer or network keeps other things."""
    folder = tmp_path_factory.mktemp("half") / "run"
    words = {
        "adam": ["digits-backprop", *TINY, "--optimizer.name", "adam"],
        "correlation": ["digits-ldrl", *TINY, "--algorithm.solver", "correlation"],
        "kolen_pollack": ["digits-backprop", *TINY, "--algorithm.name", "kolen_pollack"],
        "attached": ["digits-resnet-ldrl", *TINY[4:]],
    }[request.param]
    assert run("train", *words, "--steps", 4, "--out", folder) == 0
    return folder


@pytest.mark.slow
@settings(max_examples=500, **LIMITS)
@given(data=st.data())
def test_the_same_of_other_runs(data, other_half, tmp_path, capsys):
    replace_and_resume(data, other_half, tmp_path / "run", capsys)
