"""Solvers learn the Jacobian without reading θ; tracking keeps it (bar 3)."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp
from cases import make, symmetric
from targetprop.analysis import jacobian_mismatch
from targetprop.feedback.memory import Memory
from targetprop.feedback.patches import Patch
from targetprop.feedback.solver import probe_of


def leaves_of(net, x):
    with torch.no_grad():
        return [(la, t) for la, t in net.leaf_traces(net.trace(x)[1]) if la.has_feedback]


class Padded(nn.Conv1d):
    """A convolution of a type of the user's, weights scaled by 0.5."""


@pytest.fixture
def registered():
    tp.register(Padded, lambda m: lambda x, w: 0.5 * F.conv1d(x, w, None, m.stride, m.padding))
    yield
    del tp.maps.MAPS[Padded]


def padded():
    """(layer, trace) of a registered map whose border taps feed fewer outputs than the rest."""
    torch.manual_seed(0)
    net = tp.pair(
        nn.Sequential(
            Padded(2, 4, 3), nn.ELU(), Padded(4, 3, 5, padding=2), nn.Flatten(), nn.Linear(30, 3)
        )
    )
    x = torch.randn(6, 2, 12, dtype=torch.float64)
    return leaves_of(net.double(), x)[0]


@pytest.mark.parametrize("name", ["simple_vgg", "lenet", "odd_convolutions", "resnet18", "mlp"])
def test_predictive_solver_learns_every_jacobian(name):
    net, x, _ = make(name)
    solver = tp.feedback.PredictiveSolver(tolerance=0.03)
    generator = torch.Generator().manual_seed(0)
    for i, (layer, trace) in enumerate(leaves_of(net, x)):
        assert jacobian_mismatch(layer, trace) > 0.5
        with torch.no_grad():
            report = solver.train(i, layer, trace, Memory(), generator)
        assert report.iterations == 1
        assert report.mismatch < 1e-6
        torch.testing.assert_close(layer.omega, layer.theta, atol=1e-6, rtol=0)
        assert jacobian_mismatch(layer, trace) < 1e-6


def test_predictive_solver_learns_a_registered_map(registered):
    layer, trace = padded()
    with torch.no_grad():
        tp.feedback.PredictiveSolver().train(0, layer, trace, Memory(), torch.Generator())
    torch.testing.assert_close(layer.omega, layer.theta, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["lenet", "odd_convolutions"])
def test_a_probe_measures_the_mismatch_of_the_jacobians(name):
    """‖r‖/‖a‖ is ‖ω − θ‖/‖θ‖ of a patch, else the mismatch of the Jacobians, formed in full."""
    net, x, _ = make(name)
    for layer, trace in leaves_of(net, x):
        theirs, ours = layer.theta.detach(), layer.omega.detach()
        probe = probe_of(layer, trace)
        exact = isinstance(probe, Patch)
        if not exact:
            point = torch.zeros_like(trace.input[:1])
            theirs, ours = (
                torch.autograd.functional.jacobian(
                    lambda e, w=w, la=layer: la.map.apply(e, w), point
                )
                for w in (theirs, ours)
            )
        expected = ((ours - theirs).norm() / theirs.norm()).item()
        with torch.no_grad():
            assert probe.difference(1)[1].item() == pytest.approx(
                expected, rel=1e-9 if exact else 0.2
            )
            found = [probe.mismatch(seed).item() for seed in range(20)]
        assert sum(found) / len(found) == pytest.approx(expected, rel=0.05)


def test_the_coefficient_is_what_white_noise_correlates_to(registered):
    """E corr(A_w ε, ε) = κ w, weight by weight: border taps feed fewer outputs."""
    layer, trace = padded()
    probe = probe_of(layer, trace)
    noise = probe.noise(0, 200_000)
    with torch.no_grad():
        w = torch.ones_like(layer.omega)
        found = probe.correlate(probe.predict(noise, w), noise) / len(noise)
        torch.testing.assert_close(found, probe.coefficient() * w, rtol=0.02, atol=0)
    assert probe.coefficient().unique().numel() > 1


@pytest.mark.parametrize("case", ["convolution", "registered"])
def test_correlation_error_falls_as_one_over_root_iterations(registered, case):
    if case == "registered":
        layer, trace = padded()
    else:
        net, x, _ = make("simple_vgg")
        layer, trace = leaves_of(net, x)[1]
    solver = tp.feedback.CorrelationSolver(window=10**6, first_iterations=1)
    errors = {}
    with torch.no_grad():
        memory, generator = Memory(), torch.Generator().manual_seed(0)
        for n in range(1, 401):
            solver.train(0, layer, trace, memory, generator)
            if n in (4, 25, 100, 400):
                errors[n] = (layer.omega - layer.theta).norm().item() / layer.theta.norm().item()
    logs = torch.tensor(
        [[torch.tensor(float(n)).log(), torch.tensor(e).log()] for n, e in errors.items()]
    )
    centred = logs - logs.mean(0)
    slope = (centred[:, 0] @ centred[:, 1]) / centred[:, 0].square().sum()
    assert -0.6 < slope < -0.4
    if case == "convolution":
        d, samples = layer.theta[0].numel(), len(probe_of(layer, trace).noise(0))
        assert errors[400] == pytest.approx(((d + 1) / (samples * 400)) ** 0.5, rel=0.15)


PROBING = {
    name: kind
    for name, kind in tp.feedback.SOLVERS.items()
    if issubclass(kind, tp.feedback.ProbeSolver)
}


@pytest.mark.parametrize("name", PROBING)
def test_omega_is_computed_from_responses_and_never_reads_theta(name):
    """The same answers to the same noise give the same ω, whatever θ holds."""
    solver = PROBING[name](**{"coupled": dict(first_iterations=3)}.get(name, {}))
    for net_name in ("simple_vgg", "mlp"):
        net, x, _ = make(net_name)
        for layer, trace in leaves_of(net, x):
            true = probe_of(layer, trace)

            class Answers(Patch):
                def respond(self, noise, true=true):
                    return true.respond(noise)

                def having(self, omega):
                    return Answers(self.theta, omega)

            with torch.no_grad():
                nonsense = Answers(torch.full_like(true.theta, float("nan")), true.omega)
                expected, found = (
                    solver.calibrate(p, Memory(), 3, False) for p in (true, nonsense)
                )
            assert (
                (expected is None and found is None)
                if name == "fixed"
                else torch.equal(found, expected)
            )


def test_exact_feedback_is_a_fixed_point():
    net, x, _ = make("odd_convolutions")
    for layer, trace in leaves_of(symmetric(net), x):
        with torch.no_grad():
            step, mismatch = probe_of(layer, trace).difference(0)
        assert step.norm() < 1e-12 * layer.omega.norm()
        assert mismatch < 1e-12


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["simple_vgg", "resnet18"])
def test_tracking_keeps_exact_feedback_exact_without_a_probe(name, optimizer):
    net, x, y = make(name)
    symmetric(net)
    # an infinite tolerance and a long rest: one probe at the first batch (a fixed point), no more
    algo = tp.algorithms.LDRL(
        net, solver=tp.feedback.PredictiveSolver(tolerance=float("inf"), probe_every=10**9)
    )
    opt = OPTIMIZERS[optimizer](net.parameters())
    start = net.layers[-1].theta.detach().clone()
    for i in range(100):
        opt.zero_grad()
        report = algo.backward(x, y)
        assert i == 0 or all(r.iterations == 0 for r in report.feedback.values())
        opt.step()
    assert (net.layers[-1].theta - start).norm() > 0.01
    for layer in net.layers:
        if layer.has_feedback:
            assert (layer.omega - layer.theta).abs().max() < 1e-10


def test_an_optimizer_without_omega_is_noticed_once():
    net, x, y = make("mlp")
    algo = tp.algorithms.LDRL(net)
    opt = torch.optim.SGD(net.forward_parameters(), 0.05)
    algo.backward(x, y)
    with pytest.warns(UserWarning, match=r"net\.parameters\(\)"):
        opt.step()
    algo.backward(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()


def test_a_short_list_of_settings_is_refused():
    net, _, _ = make("lenet")
    with pytest.raises(ValueError, match="one entry per such layer"):
        tp.algorithms.LDRL(net, solver=tp.feedback.SGDSolver(lr=(0.1, 0.1)))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (tp.feedback.PredictiveSolver, {"probe_every": 0}),
        (tp.feedback.PredictiveSolver, {"probe_every_at_most": 1.5}),
        (tp.feedback.PredictiveSolver, {"tolerance": -1}),
        (tp.feedback.PredictiveSolver, {"tolerance": float("nan")}),
        (tp.feedback.CorrelationSolver, {"window": 0}),
        (tp.feedback.CorrelationSolver, {"iterations": 0}),
        (tp.feedback.CoupledSolver, {"decay": 1.0}),
        (tp.feedback.SGDSolver, {"iterations": (3, -2)}),
        (tp.feedback.SGDSolver, {"noise": 0.0}),
        (tp.feedback.AdamSolver, {"lr": float("inf")}),
        (tp.feedback.ReconstructionSolver, {"momentum": 1.0}),
    ],
)
def test_settings_out_of_range_are_refused_where_they_are_given(kind, setting):
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"{kind.__name__}: {name}=.* is out of range; expected"):
        kind(**setting)


def test_the_coupled_pathway_brings_omega_to_the_same_weight():
    """ω, unread by the predictions, ends where they send the auxiliary weight, from any start."""
    net, x, _ = make("lenet")
    solver = tp.feedback.CoupledSolver(decay=0.02, first_iterations=400)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
        for index, (layer, trace) in enumerate(leaves[1:]):
            began = tp.analysis.distance(layer.theta, layer.omega)
            memory = Memory()
            report = solver.train(index, layer, trace, memory, torch.Generator().manual_seed(0))
            assert tp.analysis.distance(layer.theta, layer.omega) < 0.001 < began
            auxiliary = memory.tensors["auxiliary"].view_as(layer.omega)
            assert (layer.omega - auxiliary).norm() < 1e-3 * layer.theta.norm()  # 0.98^400 = 3e-4
            assert report.mismatch < 0.1


def test_the_coupled_difference_shrinks_by_the_decay_whatever_the_corrections():
    net, x, _ = make("mlp")
    solver = tp.feedback.CoupledSolver(decay=0.1, first_iterations=7)
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        before, memory = layer.omega.clone(), Memory()
        solver.train(0, layer, trace, memory, torch.Generator().manual_seed(0))
        auxiliary = memory.tensors["auxiliary"].view_as(layer.omega)
        torch.testing.assert_close(layer.omega - auxiliary, before * 0.9**7, atol=1e-12, rtol=1e-9)


def test_a_probe_solves_only_where_the_mismatch_is_over_tolerance():
    net = tp.networks.simple_vgg((2, 8, 8), 5, (4, 6)).double()
    x, y = torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.arange(8) % 5
    algo = tp.algorithms.LDRL(
        net, solver=tp.feedback.PredictiveSolver(tolerance=0.1, tracking=False)
    )
    algo.backward(x, y)
    layer = dict(zip(net.names, net.layers, strict=True))["conv_1"]
    with torch.no_grad():
        layer.theta.mul_(1.02)  # ‖θ − ω‖/‖θ‖ = 0.02, under a quarter of the tolerance of 0.1
    before = layer.omega.clone()
    report = algo.backward(x, y).feedback["conv_1"]
    assert torch.equal(layer.omega, before)
    assert report.mismatch == pytest.approx(0.02 / 1.02, rel=0.01)
    with torch.no_grad():
        layer.theta.mul_(1.1)
    assert algo.backward(x, y).feedback["conv_1"].iterations == 0  # it waits twice as long
    algo.backward(x, y)
    torch.testing.assert_close(layer.omega, layer.theta)


def test_probes_wait_longer_only_where_the_mismatch_is_far_under_tolerance():
    memory = tp.feedback.memory.Memory()
    waits = []
    # tolerance 1: the first counts as found, not as kept
    for mismatch in (1.0, 0.2, 0.2, 0.5, 0.26, 0.2, 1.1, 0.0):
        memory.after(mismatch, 1.0, 3, 10)
        waits.append(memory.wait)
    assert waits == [3, 6, 10, 10, 10, 10, 1, 2]


def test_a_setting_that_holds_another_thing_than_numbers_is_refused():
    for value in ({}, [{}], [[1]]):
        with pytest.raises(ValueError, match=r"is no number|is a list"):
            tp.feedback.CorrelationSolver(first_iterations=value)
