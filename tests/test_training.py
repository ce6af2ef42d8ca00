"""Runs: configuration, logs, checkpoints, exact resumption, errors in one sentence (bar 5)."""

import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from targetprop.commands import common
from targetprop.commands import main as cli
from targetprop.training import build, checkpoint, config, loop, runner
from targetprop.training.logging import commit, read_metrics

TINY = [
    "--network.channels",
    "[4]",
    "--data.limit",
    "200",
    "--data.batch_size",
    "20",
    "--log_every",
    "1",
    "--measure_every",
    "4",
]


def run(*words):
    return cli.main([str(word) for word in words])


def weights(folder):
    return checkpoint.load(Path(folder) / "last.pt")["net"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_train_evaluate_compare(tmp_path, capsys):
    for name in ("backprop", "ldrl"):
        assert run("train", f"digits-{name}", *TINY, "--epochs", 2, "--out", tmp_path / name) == 0
    folder = tmp_path / "ldrl"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "tensorboard",
        "last.pt",
        "previous.pt",
        "best.pt",
        "curves.png",
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["torch"] == torch.__version__
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(18))
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [9, 18]
    assert all(0 <= a <= 90 for row in rows for a in row.get("angle", {}).values())
    assert any((folder / "tensorboard").iterdir())
    capsys.readouterr()
    assert run("evaluate", folder, "--weights", "best", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert (
        scores["accuracy"] == json.loads((folder / "result.json").read_text())["test"]["accuracy"]
    )
    assert run("evaluate", folder) == 0
    assert run("compare", tmp_path / "backprop", folder, "--out", tmp_path / "picture.png") == 0
    table = capsys.readouterr().out
    assert "test" in table
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert run("resume", folder) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", sorted(config.presets()))
def test_every_preset_is_a_configuration_whose_network_fits_its_images(name):
    chosen = config.load(name)
    shapes = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28)}
    classes = 1000 if "imagenet" in name else 10
    images = SimpleNamespace(in_shape=shapes.get(chosen.data.name, (3, 32, 32)), classes=classes)
    net = build.build_network(chosen, images)
    build.build_algorithm(chosen, net)
    if name.endswith("-paper"):
        feedback_layers = sum(layer.has_feedback for layer in net.layers)
        assert (
            len(chosen.sgd.lr)
            == len(chosen.sgd.noise)
            == len(chosen.sgd.iterations)
            == feedback_layers
        )


def test_paper_presets_fold_beta_into_lr_and_weight_decay():
    chosen = config.load("cifar10-vgg-ldrl-paper")
    assert chosen.optimizer.lr == pytest.approx(0.05 * 0.7)
    assert chosen.optimizer.lr * chosen.optimizer.weight_decay == pytest.approx(
        0.05 * 1e-4, rel=1e-4
    )


def test_presets_command(capsys):
    assert run("presets") == 0
    assert capsys.readouterr().out.split() == list(config.presets())
    assert run("presets", "digits-ldrl") == 0
    assert config.build(list(config.flat(yaml.safe_load(capsys.readouterr().out)))) == config.load(
        "digits-ldrl"
    )


def test_a_yaml_file_may_start_from_a_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: digits-ldrl\noptimizer: {lr: 0.01}\nsteps: 3\n")
    chosen = config.load(str(tmp_path / "mine.yaml"), [("seed", "4")])
    assert (chosen.optimizer.lr, chosen.steps, chosen.seed, chosen.network.channels) == (
        0.01,
        3,
        4,
        [32, 64],
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits-ldlr"], r"unknown preset 'digits-ldlr'; did you mean 'digits-ldrl'\?"),
        (
            ["digits-ldrl", "--optimizer.lrr", "1"],
            r"unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'\?",
        ),
        (
            ["digits-ldrl", "--optimizer.lr", "fast"],
            r"optimizer.lr=fast has the wrong type; expected a number",
        ),
        (
            ["digits-ldrl", "--optimizer.lr", "-1"],
            r"optimizer.lr=-1.0 is out of range; expected a positive number",
        ),
        (
            ["digits-ldrl", "--algorithm.name", "feedback_alignment"],
            r"takes no solver; drop algorithm.solver, or, .* give --algorithm.solver null",
        ),
        (
            ["digits-ldrl", "--network.name", "my.module.make"],
            r"unknown network.name 'my.module.make'; .* of yours is package.module:make",
        ),
        (
            ["digits-ldrl", "--network.name", "simple_vg"],
            r"unknown network.name 'simple_vg'; did you mean 'simple_vgg'",
        ),
        (
            ["digits-ldrl", "--network.feedback", "none"],
            r"network.feedback=none has the wrong type",
        ),
        (
            ["digits-ldrl", "--algorithm.solver", "sdg"],
            r"unknown algorithm.solver 'sdg'; did you mean 'sgd'",
        ),
        (["digits-backprop", "--algorithm.solver", "sgd"], "takes no solver"),
        (["digits-ldrl", "--schedule.name", "step"], "needs schedule.period"),
        (["digits-ldrl", "--optimizer.lr"], "--optimizer.lr has no value"),
        (["digits-ldrl", "oops"], "unexpected 'oops'"),
        (["digits-ldrl", "--device", "abacus"], "device=abacus is not available here"),
        (
            ["digits-ldrl", "--network.activation", "ellu"],
            "unknown activation 'ellu'; did you mean 'elu'",
        ),
        (
            ["digits-ldrl", "--network.name", "lenet", "--network.channels", "[32,64]"],
            "does not fit images of shape .1, 8, 8.: lenet takes 3 channels",
        ),
        (
            ["mnist-lenet-ldrl", "--data-dir", "/nonexistent"],
            "targetprop data fetch mnist --data-dir /nonexistent",
        ),
        (["nowhere.yaml"], "no such file: nowhere.yaml"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", *words, "--out", out) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not out.exists()


def test_bad_folders_and_files_are_refused(tmp_path, capsys):
    def fails(*words):
        assert run(*words) == 2
        return capsys.readouterr().err

    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("train", "digits-ldrl", "--out", tmp_path / "file" / "run")
    assert "holds no run" in fails("resume", tmp_path)
    assert "holds no run" in fails("compare", tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "cannot be read as YAML" in fails("train", tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "expected keys" in fails("train", tmp_path / "list.yaml")
    (tmp_path / "base.yaml").write_text("preset: digits-ldr")
    assert "did you mean" in fails("train", tmp_path / "base.yaml")
    assert "needs a name" in fails("data", "fetch")
    assert run("train", "digits-ldrl", *TINY, "--steps", 2, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert "already holds a run" in fails("train", "digits-ldrl", "--out", tmp_path / "run")
    assert "network.channels=[5] is not that of the run ([4])" in fails(
        "evaluate", tmp_path / "run", "--network.channels", "[5]"
    )
    assert "ending in .png" in fails("compare", tmp_path / "run", "--out", tmp_path / "picture.xyz")
    (tmp_path / "run" / "last.pt").write_bytes(b"junk")
    assert "damaged or not a checkpoint" in fails("evaluate", tmp_path / "run")
    buffer = io.BytesIO()
    torch.save({"format": 99}, buffer)
    (tmp_path / "run" / "last.pt").write_bytes(buffer.getvalue())
    assert "its checksum is missing" in fails("resume", tmp_path / "run")
    (tmp_path / "run" / "last.pt").write_bytes(checkpoint.signed(buffer.getvalue()))
    assert f"format 99, expected {checkpoint.FORMAT}" in fails("resume", tmp_path / "run")
    (tmp_path / "run" / "last.pt").unlink()
    assert "no such checkpoint" in fails("evaluate", tmp_path / "run")


def test_a_checkpoint_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "net": Payload()}, buffer)
    (tmp_path / "last.pt").write_bytes(checkpoint.signed(buffer.getvalue()))
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "executed").exists()


def test_damaged_checkpoints_are_refused_by_their_checksum(tmp_path):
    """100 random bit flips and 100 random truncations: none loads, each is the typed error."""
    path, rng = tmp_path / "last.pt", random.Random(0)
    checkpoint.save(path, {"net": {"w": torch.randn(30, 10)}, "step": 3})
    assert torch.load(path, weights_only=True)["step"] == 3  # still an ordinary archive
    whole = path.read_bytes()
    for _ in range(100):
        torn = bytearray(whole)
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        for content in (bytes(torn), whole[: rng.randrange(len(whole))]):
            path.write_bytes(content)
            with pytest.raises(checkpoint.CheckpointError, match="checksum"):
                checkpoint.load(path)
    path.write_bytes(whole)
    assert checkpoint.load(path)["step"] == 3


def test_resume_auto_takes_the_newest_valid_checkpoint(tmp_path, capsys):
    words = [*TINY, "--steps", 12, "--checkpoint_every", 3, "--data.validation", 0]
    assert run("train", "digits-ldrl", *words, "--out", tmp_path / "runs" / "whole") == 0
    assert run("train", "digits-ldrl", *words, "--out", tmp_path / "runs" / "cut") == 0
    cut = tmp_path / "runs" / "cut"
    expected = weights(cut)
    last = cut / "last.pt"
    last.write_bytes(last.read_bytes()[:-1])
    assert run("resume", cut) == 2
    assert "--auto" in capsys.readouterr().err
    assert run("resume", cut, "--auto") == 0
    assert equal(weights(cut), expected)
    said = capsys.readouterr()
    out = " ".join(said.out.split())
    assert "passed over" in said.err
    assert "previous.pt is the newest valid checkpoint" in out
    assert run("resume", tmp_path / "runs", "--auto") == 0
    for path in (tmp_path / "runs").rglob("*.pt"):
        path.write_bytes(b"junk")
    assert run("resume", tmp_path / "runs", "--auto") == 2
    assert "no checkpoint here can be loaded" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"value": 1})

    def break_off(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write_atomically(path, break_off)
    assert checkpoint.load(path)["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_divergence_stops_names_layer_and_step_and_keeps_the_last_checkpoint(tmp_path, capsys):
    out = tmp_path / "run"
    words = [
        *TINY,
        "--steps",
        60,
        "--checkpoint_every",
        1,
        "--optimizer.lr",
        "1e8",
        "--algorithm.name",
        "backprop",
    ]
    assert run("train", "digits-backprop", *words, "--out", out) == 3
    error = capsys.readouterr().err
    assert re.search(r"step \d+", error)
    assert re.search(r"(conv_0|fc_1|blocks)", error)
    assert "last good checkpoint" in error
    assert all(value.isfinite().all() for value in weights(out).values())


@pytest.mark.parametrize("algorithm", ["ldrl", "backprop", "dtp"])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, algorithm, capsys):
    words = [
        "digits-ldrl",
        *TINY,
        "--epochs",
        3,
        "--data.augment",
        "flip-crop",
        "--algorithm.name",
        algorithm,
    ]
    words += [
        "--algorithm.solver",
        {"ldrl": "predictive", "dtp": "reconstruction"}.get(algorithm, "null"),
    ]
    assert run("train", *words, "--out", tmp_path / "whole") == 0
    cut = tmp_path / "cut"
    chosen = config.load(words[0], common.overrides([str(w) for w in words[1:]]))

    def interrupt(session, loss):
        if session.progress.step in (4, 13):
            os.kill(os.getpid(), signal.SIGINT)

    session = runner.start(chosen, cut)
    for expected in (4, 13):
        with pytest.raises(
            loop.Interrupted, match=f"step {expected}; go on with: targetprop resume"
        ):
            loop.run(session, interrupt)
        session = runner.resume(common.run_config(cut), cut)
    assert run("resume", cut) == 0
    assert equal(weights(tmp_path / "whole"), weights(cut))

    def losses(folder):
        rows = read_metrics(folder / "metrics.jsonl")
        return [(row["kind"], row["step"], row["loss"]) for row in rows]

    assert losses(cut) == losses(tmp_path / "whole")


def start(folder, *words):
    # a child process that sees this source tree as this process does
    command = [sys.executable, "-m", "targetprop.commands.main", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed_and_resumed(tmp_path, kills, seed):
    """Train with kill −9 at random moments, resuming each time; the folder of the finished run."""
    rng = random.Random(seed)
    words = [*TINY, "--epochs", 20, "--checkpoint_every", 1]
    cut = tmp_path / f"cut-{seed}"
    process = start(cut, "train", "digits-ldrl", *words, "--out", cut)
    for _ in range(kills):
        limit = time.time() + 60
        seen = len(read_metrics(cut / "metrics.jsonl"))
        wanted = seen + rng.randint(3, 40)
        while (
            process.poll() is None
            and len(read_metrics(cut / "metrics.jsonl")) < wanted
            and time.time() < limit
        ):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.wait()
        for path in cut.glob("*.pt"):
            checkpoint.load(path)  # raises if torn
        process = start(cut, "resume", cut)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert not list(cut.glob(".*.part"))
    return cut, words


def test_kill_9_then_resume_gives_the_same_weights(tmp_path):
    cut, words = killed_and_resumed(tmp_path, 2, seed=0)
    assert run("train", "digits-ldrl", *words, "--out", tmp_path / "whole") == 0
    assert equal(weights(tmp_path / "whole"), weights(cut))


@pytest.mark.slow
def test_many_kills(tmp_path):
    runs = [killed_and_resumed(tmp_path, 5, seed) for seed in range(1, 7)]
    assert run("train", "digits-ldrl", *runs[0][1], "--out", tmp_path / "whole") == 0
    assert all(equal(weights(tmp_path / "whole"), weights(cut)) for cut, _ in runs)


def test_kill_9_within_a_checkpoint_write_leaves_the_last_one(tmp_path):
    """The child is killed by itself between the bytes of a checkpoint."""
    path = tmp_path / "last.pt"
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from targetprop.training import checkpoint as c\n"
        "path = Path(sys.argv[1]); c.save(path, {'value': 1})\n"
        "def write(file):\n    file.write(b'x' * 1000); file.flush(); "
        "os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.write_atomically(path, write)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.load(path)["value"] == 1
    assert len(list(tmp_path.glob(".*.part"))) == 1
    checkpoint.remove_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_data_commands(tmp_path, capsys):
    assert run("data", "list") == 0
    assert "cifar10" in capsys.readouterr().out
    assert run("data", "check", "digits") == 0
    assert "1438 training and 359 test images" in " ".join(capsys.readouterr().out.split())
    assert run("data", "fetch", "digits") == 0
    assert run("data", "check", "mnist", "--data-dir", tmp_path) == 2
    assert run("data", "list", "extra") == 2
    assert run("presets", "digits-ldrl", "extra") == 2
    assert run("compare", tmp_path, "--extra") == 2


def test_other_optimizers_schedules_and_devices(tmp_path):
    for i, words in enumerate(
        (
            ["--optimizer.name", "adam", "--optimizer.lr", "0.001", "--schedule.name", "constant"],
            [
                "--schedule.name",
                "step",
                "--schedule.period",
                "1",
                "--schedule.unit",
                "epoch",
                "--data.validation",
                "0",
            ],
            [
                "--dtype",
                "float64",
                "--algorithm.name",
                "targetprop",
                "--algorithm.solver",
                "null",
                "--algorithm.loss",
                "mse",
                "--optimizer.lr",
                "1e-4",
            ],
            [
                "--algorithm.name",
                "fixed_weight_dtp",
                "--algorithm.solver",
                "null",
                "--device",
                "cpu",
            ],
            [
                "--algorithm.solver",
                "symmetric",
                "--network.name",
                "resnet18",
                "--network.channels",
                "[2,2,2,2]",
            ],
        )
    ):
        assert (
            run("train", "digits-ldrl", *TINY, "--epochs", 2, *words, "--out", tmp_path / str(i))
            == 0
        )
    rows = read_metrics(tmp_path / "1" / "metrics.jsonl")
    rates = [row["lr"] for row in rows if row["kind"] == "train"]
    assert rates[-1] == pytest.approx(0.1 * rates[0])


def test_metrics_drop_a_torn_line(tmp_path):
    row = {"kind": "train", "step": 1, "loss": 2.3, "accuracy": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + '\n{"kind": "tr')
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]


def test_commit_is_that_of_the_source_tree():
    found = commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{12}\+?", found)


def test_digits_ldrl_matches_backprop(tmp_path):
    """Bar 4 on digits at a third of its length; in full, over 5 seeds: docs/results.md."""
    scores = {}
    for name in ("backprop", "ldrl"):
        assert run("train", f"digits-{name}", "--epochs", 10, "--out", tmp_path / name) == 0
        scores[name] = json.loads((tmp_path / name / "result.json").read_text())["test"]["accuracy"]
    angles = [
        a
        for row in read_metrics(tmp_path / "ldrl" / "metrics.jsonl")[10:]
        for a in row.get("angle", {}).values()
    ]
    assert scores["backprop"] > 0.93
    assert abs(scores["ldrl"] - scores["backprop"]) < 0.02
    assert angles
    assert max(angles) < 10


def test_the_section_of_a_default_solver_counts():
    cases = (
        ("dtp", "reconstruction.lr", 0.5),
        ("parallel_ldrl", "adam.samples", 3),
        ("ldrl", "predictive.tolerance", 0.3),
    )
    for name, key, value in cases:
        chosen = config.build([("algorithm.name", name), (key, value), ("network.channels", [4])])
        algo = build.build_algorithm(chosen, build.build_network(chosen, build.load_data(chosen)))
        assert getattr(algo.solver, key.split(".")[1]) == value


@pytest.mark.parametrize(
    ("preset", "key", "value", "why"),
    [
        ("digits-backprop", "algorithm.beta", 0.1, "algorithm 'backprop'"),
        ("digits-backprop", "sgd.lr", 0.1, "algorithm 'backprop'"),
        ("digits-ldrl", "sgd.lr", 0.1, "solver 'predictive'"),
        ("digits-ldrl", "drl.damping", 0.1, "algorithm 'ldrl'"),
        ("digits-ldrl", "algorithm.variant", "frSF", "algorithm 'ldrl'"),
        ("digits-ldrl", "schedule.factor", 0.5, "schedule.name=cosine"),
        ("digits-ldrl", "data.padding", 2, "data.augment=none"),
        ("digits-ldrl", "data.image_size", 2, "data set 'digits'"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(preset, key, value, why):
    with pytest.raises(
        config.ConfigError, match=f"{key}={value} would change nothing with {why}; leave it out"
    ):
        config.load(preset, [("data.augment", "none"), ("data.padding", "4"), (key, str(value))])


def test_a_solver_section_of_an_algorithm_without_a_solver_is_refused():
    with pytest.raises(
        config.ConfigError,
        match=r"predictive\.tolerance=0.5 would change nothing with algorithm 'fixed",
    ):
        config.build([("algorithm.name", "fixed_weight_dtp"), ("predictive.tolerance", "0.5")])


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_uses_all_that_it_sets(name):
    assert config.load(name) == config.build(list(config.flat(config.load(name).to_dict())))


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_help_shows_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    example = cli.COMMANDS[name].EXAMPLE
    assert " ".join(example.split()) in " ".join(capsys.readouterr().out.split())
    args, _ = cli.parser().parse_known_args(cli.joined(shlex.split(example)[1:]))
    assert args.action is cli.COMMANDS[name].run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_know_the_commands(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--print-completion", shell])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_other_programs_cost_a_run_no_seconds(tmp_path):
    """A sleeping step, as one whose core another program has, takes no time of its own."""
    session = runner.start(
        config.load("digits-backprop", [("steps", 2), ("device", "cpu")]), tmp_path
    )
    session.optimizer.register_step_pre_hook(lambda *_: time.sleep(0.4))
    began = time.perf_counter()
    result = runner.run(session)
    assert time.perf_counter() - began > 0.8
    assert 0 < result["seconds_per_step"] < 0.4


def test_a_half_done_run_is_not_taken_up_with_other_settings(tmp_path):
    runner.start(config.load("digits-backprop", [("steps", 2)]), tmp_path)
    other = config.load("digits-backprop", [("steps", 2), ("optimizer.lr", 0.5)])
    with pytest.raises(config.ConfigError, match=r"other settings \(optimizer.lr\)"):
        runner.take_up(other, tmp_path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("algorithm.beta", "a number or null"),
        ("steps", "an integer or null"),
        ("network.channels", "a list of integers or null"),
        ("network.bias", "true or false"),
        ("data.augment", "one of 'none', 'crop', 'flip-crop'"),
        ("sgd.noise", "a number or a list of numbers"),
        ("sgd.iterations", "an integer or a list of integers"),
    ],
)
def test_a_wrong_type_names_what_is_expected(key, words):
    with pytest.raises(config.ConfigError, match=f"{key}=odd has the wrong type; expected {words}"):
        config.build([(key, "odd")])
