"""What commands print: for people, for scripts, for nobody."""

import json

import pytest

from targetprop.commands import main as cli
from targetprop.data import SOURCES
from targetprop.training import config
from targetprop.training.logging import read_result

TINY = ["--network.channels", "[4]", "--data.limit", "200", "--data.batch_size", "20"]


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("output") / "run"
    assert run("train", "digits-ldrl", *TINY, "--steps", 4, "--out", folder) == 0
    return folder


def commands(trained, out):
    """By name, words of a command and whether its JSON document is right."""
    held = read_result(trained)
    ended = {"folder": str(trained), **held}
    return {
        "train": (
            ["train", "digits-ldrl", *TINY, "--steps", 4, "--out", out / "again"],
            lambda d: d["folder"] == str(out / "again") and d["test"] == held["test"],
        ),
        "resume": (["resume", trained], lambda d: d == ended),
        "sweep": (
            ["sweep", "digits-ldrl", *TINY, "--steps", 4, "--seeds", 1, "--out", out / "sweep"],
            lambda d: d == json.loads((out / "sweep" / "sweep.json").read_text()),
        ),
        "evaluate": (["evaluate", trained], lambda d: d == held["test"]),
        "export": (
            ["export", trained, "--format", "safetensors", "--out", out / "net.safetensors"],
            lambda d: d["bytes"] == (out / "net.safetensors").stat().st_size,
        ),
        "compare": (
            ["compare", trained, "--out", out / "curves.png"],
            lambda d: d[0]["test_accuracy"] == held["test"]["accuracy"] and d[0]["steps"] == 4,
        ),
        "report": (
            ["report", trained, "--out", out / "page.html"],
            lambda d: d["runs"] == [{"folder": str(trained), "finished": True}],
        ),
        "bench": (
            [
                *("bench", "plain", "backprop", "--networks", "mlp", "--data", "digits"),
                *("--warmup", 1, "--steps", 10, "--no-memory", "--out", out / "bench"),
            ],
            lambda d: d == json.loads((out / "bench" / "bench.json").read_text()),
        ),
        "tune": (
            [
                *("tune", "digits-ldrl", *TINY, "--epochs", 1, "--trials", 1),
                *("--storage", f"sqlite:///{out / 'study.db'}", "--out", out / "study"),
            ],
            lambda d: d == json.loads((out / "study" / "trials.json").read_text()),
        ),
        "data list": (["data", "list"], lambda d: [s["name"] for s in d] == list(SOURCES)),
        "data check": (["data", "check", "digits"], lambda d: d["classes"] == 10),
        "presets": (["presets"], lambda d: d == list(config.presets())),
        "presets NAME": (
            ["presets", "digits-ldrl"],
            lambda d: d == config.load("digits-ldrl").to_dict(),
        ),
        "reproduce": (
            ["reproduce", "figure-4.2", "--seeds", 1, "--out", out / "figures"],
            lambda d: len(d) == 4 and str(out / "figures" / "figure-4.2" / "figure-4.2.md") in d,
        ),
    }


NAMES = [
    *("train", "resume", "sweep", "evaluate", "export", "compare", "report", "bench", "tune"),
    *("data list", "data check", "presets", "presets NAME", "reproduce"),
]


@pytest.mark.parametrize("name", NAMES)
def test_json_is_all_that_standard_output_gets(trained, tmp_path, capsys, name):
    if name == "tune":
        pytest.importorskip("optuna")
    words, right = commands(trained, tmp_path)[name]
    capsys.readouterr()
    assert run(*words, "--json") == 0
    assert right(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("name", ["train", "evaluate", "compare", "data list", "presets"])
def test_quiet_says_nothing(trained, tmp_path, capsys, name):
    words, _ = commands(trained, tmp_path)[name]
    capsys.readouterr()
    assert run(*words, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("evaluate", tmp_path / "nowhere", "--quiet") == 2
    assert capsys.readouterr().err.startswith("targetprop: ")


def test_quiet_passes_nothing_over_in_silence(trained, tmp_path, capsys):
    """A damaged result is named, and in JSON what is no number is null."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).write_bytes((trained / name).read_bytes())
    (folder / "result.json").write_text("{")
    assert run("compare", folder, "--out", tmp_path / "curves.png", "--quiet", "--json") == 0
    said = capsys.readouterr()
    assert "result.json is damaged" in said.err
    assert json.loads(said.out)[0]["test_accuracy"] is None


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_both_options(name, capsys):
    with pytest.raises(SystemExit):
        run(name, "--help")
    said = capsys.readouterr().out
    assert "--json" in said
    assert "--quiet" in said
