"""The fast path changes only the time: layouts, precision, compilation, late reading; the bench."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import targetprop as tp
from cases import make, symmetric
from targetprop.benchmarking import bench, scaling
from targetprop.benchmarking.contenders import Setting
from targetprop.commands.main import main
from targetprop.feedback import losses
from targetprop.feedback.memory import Memory
from targetprop.feedback.solver import noise_like
from targetprop.laboratory.pooling import memory_format
from targetprop.laboratory.streams import Beside
from targetprop.models import plain
from targetprop.training.config import ConfigError
from targetprop.training.device import layout, prepare, weight_dtype


def gradients_of(algo, x, y):
    algo.net.zero_grad()
    algo.backward(x, y)
    return [p.grad for p in algo.net.forward_parameters()]


@pytest.mark.parametrize("kind", ["matched", "mirror"])
@pytest.mark.parametrize("name", ["lenet", "simple_vgg", "resnet18", "odd_convolutions"])
def test_channels_last_gives_the_same_gradients_and_stays_channels_last(name, kind):
    net, x, y = make(name, feedback=kind)
    algo = tp.algorithms.LDRL(net, solver=tp.feedback.Fixed())
    expected = gradients_of(algo, x, y)
    net.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(gradients_of(algo, x, y), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    if name != "odd_convolutions":  # circular padding goes through autograd, which picks its own
        for layer, trace in net.leaf_traces(net.trace(x)[1]):
            d = layer.stage.difference(trace.saved, trace.output, torch.ones_like(trace.output))
            wide = d.dim() == 4 and min(d.shape[1:]) > 1
            assert not wide or memory_format(d) == torch.channels_last


@pytest.mark.parametrize("solver", ["predictive", "correlation"])
def test_solvers_learn_in_channels_last(solver):
    net, x, _ = make("simple_vgg")
    net.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    learner = tp.feedback.SOLVERS[solver](
        **(dict(iterations=300) if solver == "correlation" else {})
    )
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        before = tp.analysis.angle(layer.theta, layer.omega)
        learner.train(0, layer, trace, Memory(), torch.Generator().manual_seed(0))
        assert before > 60
        assert tp.analysis.angle(layer.theta, layer.omega) < 10


@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_the_papers_loss_and_gradient_are_the_same_in_channels_last(name):
    net, x, _ = make(name, feedback="mirror")
    found = {}
    for form in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=form)
        torch.manual_seed(1)
        with torch.no_grad():
            for i, (layer, trace) in enumerate(
                net.leaf_traces(net.trace(x.contiguous(memory_format=form))[1])[1:]
            ):
                e, h = (
                    torch.randn_like(trace.input.contiguous()),
                    torch.randn_like(trace.output.contiguous()),
                )
                found[i, form] = losses.ldrl(layer, trace, e, h)
    for i in range(len(found) // 2):
        for a, b in zip(
            found[i, torch.contiguous_format], found[i, torch.channels_last], strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_noise_has_the_layout_of_what_it_perturbs():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(3, 4, 5, 6)
    for form in (torch.contiguous_format, torch.channels_last):
        noise = noise_like(x.contiguous(memory_format=form), generator, 500)
        assert noise.shape == (500, 4, 5, 6)
        assert memory_format(noise) == form
        assert abs(noise.mean()) < 0.02
        assert abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("name", ["lenet", "simple_vgg"])
def test_bfloat16_products_stay_near_float32(name):
    net, x, y = make(name, torch.float32)
    symmetric(net)
    exact = gradients_of(tp.algorithms.Backprop(net), x, y)
    net.compute_in(torch.bfloat16)
    for algo in (tp.algorithms.Backprop(net), tp.algorithms.LDRL(net)):
        report = algo.backward(x, y)
        assert report.logits.dtype == torch.float32
        for a, b in zip(gradients_of(algo, x, y), exact, strict=True):
            assert a.dtype == torch.float32
            assert tp.analysis.angle(a, b) < 6
    assert all(
        isinstance(layer.map.inner, type(make(name)[0].layers[i].map))
        for i, layer in enumerate(net.layers)
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("simple_vgg", "resnet18"))]
)
def test_compiled_passes_give_the_same_gradients(name):
    # float64: torch 2.13's float32 CPU kernels crash on such narrow channels-last layers
    net, x, y = make(name)
    for make_algo in (
        tp.algorithms.Backprop,
        lambda n: tp.algorithms.LDRL(n, solver=tp.feedback.Fixed()),
    ):
        algo = make_algo(net)
        expected = gradients_of(algo, x, y)
        algo.compile()
        for a, b in zip(gradients_of(algo, x, y), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_pieces_beside_run_in_order_on_a_cpu():
    beside, done = Beside(torch.device("cpu")), []
    for i in range(3):
        with beside.piece():
            done.append(i)
    beside.join()
    assert done == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_only_a_probe_makes_the_gpu_wait():
    net, x, y = make("simple_vgg", torch.float32)
    net, x, y = net.cuda(), x.cuda(), y.cuda()
    algo = tp.algorithms.LDRL(net, solver=tp.feedback.PredictiveSolver(probe_every=1000))
    algo.backward(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            algo.backward(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_probes_of_the_layers_take_turns():
    net, x, y = make("simple_vgg")
    algo = tp.algorithms.LDRL(
        net, solver=tp.feedback.PredictiveSolver(tolerance=0.3, probe_every=5)
    )
    algo.backward(x, y)
    seen = [{n for n, r in algo.backward(x, y).feedback.items() if r.iterations} for _ in range(10)]
    assert all(len(names) <= 1 for names in seen)
    assert set.union(*seen) == set(net.names[1:])


@pytest.mark.parametrize("name", plain.NETWORKS)
def test_plain_networks_compute_what_the_paired_ones_do(name):
    small = {"mlp": (9, 7), "lenet": (3, 4, 8), "simple_vgg": (4, 5), "chain": (4, 5, 6)}.get(
        name, (3, 4, 5, 6)
    )
    torch.manual_seed(0)
    module = plain.NETWORKS[name]((2, 12, 12), 5, small)
    torch.manual_seed(0)
    built = tp.networks.NETWORKS[name]((2, 12, 12), 5, small)
    x = torch.randn(3, 2, 12, 12)
    paired = tp.pair(module)
    torch.manual_seed(0)
    torch.testing.assert_close(built(x), paired(x), atol=0, rtol=0)
    expected = torch.autograd.grad(
        F.cross_entropy(module(x), torch.tensor([0, 1, 2])), list(paired.forward_parameters())
    )
    paired.zero_grad()
    tp.algorithms.Backprop(paired).backward(x, torch.tensor([0, 1, 2]))
    for parameter, gradient in zip(paired.forward_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_layout_avoids_channels_last_where_torch_corrupts_memory():
    grey, colour = (plain.lenet((c, 12, 12), 5, (3, 4, 8)) for c in (1, 3))
    assert layout(grey, "auto") == torch.contiguous_format
    assert layout(colour, "auto") == torch.channels_last
    assert layout(colour, "contiguous") == torch.contiguous_format
    with pytest.raises(ConfigError, match="one channel"):
        layout(grey, "channels_last")
    with pytest.raises(ConfigError, match="paired network"):
        prepare(colour, torch.device("cpu"), "bfloat16", "auto")
    assert weight_dtype("float64") == torch.float64
    assert weight_dtype("bfloat16") == torch.float32


def test_bench_writes_what_it_measured(tmp_path, capsys):
    names = ["plain", "backprop", "ldrl", "untracked:tolerance=0.01"]
    words = [
        "bench",
        *names,
        "--networks",
        "lenet",
        "--channels",
        "4",
        "6",
        "12",
        "--data",
        "digits",
    ]
    words += ["--steps", "10", "--warmup", "2", "--batch-size", "16", "--out", str(tmp_path)]
    assert main(words) == 0
    capsys.readouterr()
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    rows = {row["contender"]: row for row in result["rows"]}
    assert list(rows) == names
    assert rows["backprop"]["ratio"] == 1
    assert rows["ldrl"]["angle_max"] >= rows["ldrl"]["angle_mean"] > 0
    assert rows["plain"]["angle_max"] is None
    assert rows["untracked:tolerance=0.01"]["iterations"] > 0
    assert all(row["memory"] is None or row["memory"] > 0.1 for row in rows.values())
    assert "| ldrl |" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_the_papers_solver_is_a_contender():
    dataset = tp.data.load("digits")
    rows = bench.bench(
        ["backprop", "paper"],
        Setting("lenet", (2, 3, 4), 8),
        dataset,
        warmup=1,
        steps=10,
        memory=False,
    )
    assert rows[1].iterations == 41 + 51 + 24
    assert rows[1].steps == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nonsense"], "unknown contender"),
        (["ldrl:tolerence=1"], "did you mean 'tolerance'"),
        (["ldrl:tolerance=low"], "not a number"),
        (["plain:tolerance=1"], "takes no settings"),
        (["paper", "--networks", "resnet18"], "no solver settings"),
        (["ldrl", "ldrl"], "twice"),
        (["ldrl", "--steps", "3"], "give 10, 20, 30"),
        (["ldrl", "--networks", "lenet", "mlp", "--channels", "3"], "one network"),
        (["ldrl", "--networks", "lenet", "--channels", "3"], "does not fit"),
        (["ldrl", "--what", "3"], "unexpected"),
        (["attach:coupld"], "did you mean 'coupled'"),
        (["attach:adam"], "unknown rule or solver 'adam'"),
    ],
)
def test_bench_refuses_before_it_works(words, sentence, tmp_path, capsys):
    assert main(["bench", *words, "--data", "digits", "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "bench.json").exists()


def test_scaling_measures_every_point(tmp_path):
    dataset, shared = tp.data.load("digits"), Setting()
    values = {"depth": (2.0, 3.0), "width": (4.0,), "batch": (8.0,)}
    found = scaling.scaling(list(values), shared, dataset, steps=10, values=values, memory=False)
    scaling.write(found, shared, tmp_path)
    assert [value for value, _ in found["depth"]] == [2, 3]
    assert all(
        len(rows) == 2 and rows[1].ratio > 0 for points in found.values() for _, rows in points
    )
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert "## depth" in (tmp_path / "scaling.md").read_text()
    with pytest.raises(ConfigError, match="unknown axis"):
        scaling.scaling(["height"], shared, dataset)


def test_sweep_runs_every_seed_and_goes_on_where_it_was(tmp_path, capsys):
    words = [
        "sweep",
        "digits-backprop",
        "digits-ldrl",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--measure_every",
        "0",
    ]
    words += ["--network.channels", "[8]", "--network.name", "mlp", "--out", str(tmp_path)]
    assert main([*words, "--minutes", "0.0001"]) == 128 + 14
    assert not (tmp_path / "sweep.json").exists()
    assert main(words) == 0
    results = json.loads((tmp_path / "sweep.json").read_text())["results"]
    assert [(r["name"], r["seeds"]) for r in results] == [
        ("digits-backprop", 2),
        ("digits-ldrl", 2),
    ]
    assert all(0.05 < r["accuracy"] <= 1 and r["accuracy_std"] >= 0 for r in results)
    cells = sorted(
        p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*/result.json")
    )
    assert cells == [f"digits-{a}/seed-{s}" for a in ("backprop", "ldrl") for s in (0, 1)]
    before = (tmp_path / "digits-ldrl/seed-1/result.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "digits-ldrl/seed-1/result.json").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*words, "--optimizer.lr", "0.2"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    refused = tmp_path / "refused"
    assert main([*words[:1], "digits-backprop", "--seeds", "0", "--out", str(refused)]) == 2
    assert not refused.exists()
