"""Solvers learn the Jacobian without reading θ; tracking keeps it (bar 3)."""

import warnings

import pytest
import torch

import targetprop as tp
from cases import make, symmetric
from targetprop.analysis import jacobian_mismatch
from targetprop.feedback.predictive import correction
from targetprop.feedback.solver import taps


def leaves_of(net, x):
    with torch.no_grad():
        return [(la, t) for la, t in net.leaf_traces(net.trace(x)[1]) if la.has_feedback]


@pytest.mark.parametrize("name", ["simple_vgg", "lenet", "odd_convolutions", "resnet18", "mlp"])
def test_predictive_solver_learns_every_jacobian(name):
    net, x, _ = make(name)
    solver = tp.feedback.PredictiveSolver(tolerance=0.03, first_iterations=3000)
    generator = torch.Generator().manual_seed(0)
    for i, (layer, trace) in enumerate(leaves_of(net, x)):
        before = jacobian_mismatch(layer, trace)
        with torch.no_grad():
            report = solver.train(i, layer, trace, {}, generator)
        assert before > 0.5
        assert report.iterations > 1
        assert jacobian_mismatch(layer, trace) < 0.05


@pytest.mark.parametrize("name", ["lenet", "odd_convolutions"])
def test_predictive_solver_reports_the_mismatch_it_has(name):
    """‖r‖/‖a‖ is the mismatch of the linear maps' Jacobians, here formed in full."""
    net, x, _ = make(name)
    for layer, trace in leaves_of(net, x):
        point = torch.zeros_like(trace.input[:1])
        theirs, ours = (
            torch.autograd.functional.jacobian(lambda e, w=w, la=layer: la.map.apply(e, w), point).flatten()
            for w in (layer.theta.detach(), layer.omega.detach())
        )
        with torch.no_grad():
            e = torch.randn(2000, *trace.input.shape[1:], dtype=x.dtype)
            _, mismatch = correction(layer, layer.omega, taps(layer, trace.input), e, layer.respond(e))
        assert mismatch.item() == pytest.approx(((ours - theirs).norm() / theirs.norm()).item(), rel=0.05)


@pytest.mark.parametrize("name", ["lenet", "odd_convolutions", "resnet18"])
def test_taps_count_the_outputs_that_each_weight_feeds(name):
    net, x, _ = make(name)
    for layer, trace in leaves_of(net, x):
        use = taps(layer, trace.input)
        weight = torch.zeros_like(layer.omega, requires_grad=True)
        outputs = layer.map.apply(torch.ones_like(trace.input[:1]), weight)
        (counts,) = torch.autograd.grad(outputs.sum(), weight)
        torch.testing.assert_close(use.counts.expand_as(counts), counts)
        assert use.fan_in == pytest.approx(counts.sum().item() / outputs.numel())
        assert use.positions == outputs[0].numel() // len(weight)
        assert use.counts.shape[:2] == (1, 1)  # every channel is used alike: one number a tap is kept


def test_a_fully_connected_layer_with_enough_samples_is_exact_in_one_iteration():
    net, x, _ = make("mlp")
    for i, (layer, trace) in enumerate(leaves_of(net, x)):
        assert jacobian_mismatch(layer, trace) > 0.5
        with torch.no_grad():
            report = tp.feedback.PredictiveSolver(first_iterations=1).train(i, layer, trace, {}, torch.Generator())
        assert report.iterations == 1
        torch.testing.assert_close(layer.omega, layer.theta, atol=1e-12, rtol=0)


def test_a_step_contracts_the_mismatch_as_predicted():
    net, x, _ = make("mlp")
    layer, trace = leaves_of(net, x)[0]
    use = taps(layer, trace.input)
    generator = torch.Generator().manual_seed(0)
    factors = []
    with torch.no_grad():
        for _ in range(40):
            e = torch.randn(4, *trace.input.shape[1:], dtype=x.dtype, generator=generator)
            before = (layer.omega - layer.theta).norm()
            layer.omega.add_(correction(layer, layer.omega, use, e, layer.respond(e))[0])
            factors.append(((layer.omega - layer.theta).norm() / before).item())
    assert sum(factors) / len(factors) == pytest.approx(use.contraction(4), rel=0.15)


def test_correlation_error_falls_as_one_over_root_iterations():
    net, x, _ = make("simple_vgg")
    x = torch.randn(64, *x.shape[1:], dtype=x.dtype)
    layer, trace = leaves_of(net, x)[1]
    solver = tp.feedback.CorrelationSolver(window=10**6)
    errors = {}
    with torch.no_grad():
        state, generator = {}, torch.Generator().manual_seed(0)
        for n in range(1, 401):
            solver.train(0, layer, trace, state, generator)
            if n in (4, 25, 100, 400):
                errors[n] = (layer.omega - layer.theta).norm().item() / layer.theta.norm().item()
    logs = torch.tensor([[torch.tensor(float(n)).log(), torch.tensor(e).log()] for n, e in errors.items()])
    centred = logs - logs.mean(0)
    slope = (centred[:, 0] @ centred[:, 1]) / centred[:, 0].square().sum()
    assert -0.6 < slope < -0.4


def test_omega_is_computed_from_responses_and_never_reads_theta():
    for name in ("simple_vgg", "mlp"):
        net, x, _ = make(name)
        for layer, trace in leaves_of(net, x):
            with torch.no_grad():
                e = torch.randn_like(trace.input)
                response = layer.respond(e)
                expected, _ = correction(layer, layer.omega, taps(layer, trace.input), e, response)
                layer.theta.add_(torch.randn_like(layer.theta))
                found, _ = correction(layer, layer.omega, taps(layer, trace.input), e, response)
            assert torch.equal(found, expected)
            assert found.norm() > 0


def test_exact_feedback_is_a_fixed_point():
    net, x, _ = make("odd_convolutions")
    for layer, trace in leaves_of(symmetric(net), x):
        with torch.no_grad():
            e = torch.randn_like(trace.input)
            step, mismatch = correction(layer, layer.omega, taps(layer, trace.input), e, layer.respond(e))
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
    # an infinite tolerance and a long rest: one probe at the first batch (a fixed point), none later
    algo = tp.algorithms.LDRL(net, solver=tp.feedback.PredictiveSolver(tolerance=float("inf"), probe_every=10**9))
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


def test_tracking_with_rare_probes_reaches_and_keeps_the_mismatch():
    net, x, y = make("simple_vgg")
    # one iteration a probe, a probe every tenth step: the mismatch must come down by tracking and rare probes alone
    solver = tp.feedback.PredictiveSolver(tolerance=0.0, max_iterations=1, first_iterations=1, oversampling=64)
    opt = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
    algo = tp.algorithms.LDRL(net, solver=RareProbes(solver, 10))
    seen = []
    for step in range(400):
        opt.zero_grad()
        algo.backward(x, y)
        opt.step()
        if step % 20 == 0 and step >= 300:
            seen += [jacobian_mismatch(layer, trace) for layer, trace in leaves_of(net, x)]
    assert max(seen) < 0.05


class RareProbes:
    """Calls a solver on every ``every``-th batch only, whatever the mismatch."""

    tracking = True

    def __init__(self, solver, every):
        self.solver, self.every = solver, every

    def train(self, index, layer, trace, state, generator, peers):
        state["calls"] = state.get("calls", -1) + 1
        if state["calls"] % self.every:
            return tp.feedback.FeedbackReport(0)
        return self.solver.train(index, layer, trace, state, generator, peers)


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
    net, x, y = make("lenet")
    algo = tp.algorithms.LDRL(net, solver=tp.feedback.SGDSolver(lr=(0.1, 0.1)))
    with pytest.raises(ValueError, match="one entry per such layer"):
        algo.backward(x, y)


def test_the_coupled_pathway_brings_omega_to_the_same_weight():
    """ω is not read by the predictions, yet ends where they send the auxiliary weight, from wherever it began."""
    net, x, _ = make("lenet")
    solver = tp.feedback.CoupledSolver(decay=0.02, first_iterations=400)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
        for index, (layer, trace) in enumerate(leaves[1:]):
            began = tp.analysis.distance(layer.theta, layer.omega)
            state = {}
            report = solver.train(index, layer, trace, state, torch.Generator().manual_seed(0))
            contraction = taps(layer, trace.input).contraction(2)
            rest = contraction * 0.02 / (1 - contraction * 0.98)
            assert tp.analysis.distance(layer.theta, layer.omega) < max(0.05, rest) < began
            assert (layer.omega - state["auxiliary"]).norm() < 1e-3 * layer.theta.norm()  # 0.98^400 = 3e-4
            assert report.mismatch < 0.1


def test_the_coupled_difference_shrinks_by_the_decay_whatever_the_corrections():
    net, x, _ = make("mlp")
    solver = tp.feedback.CoupledSolver(decay=0.1, first_iterations=7)
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        before, state = layer.omega.clone(), {}
        solver.train(0, layer, trace, state, torch.Generator().manual_seed(0))
        torch.testing.assert_close(layer.omega - state["auxiliary"], before * 0.9**7, atol=1e-12, rtol=1e-9)


def test_a_patch_probe_solves_only_after_the_mismatch_was_over_tolerance():
    net = tp.networks.simple_vgg((2, 8, 8), 5, (4, 6)).double()
    x, y = torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.arange(8) % 5
    algo = tp.algorithms.LDRL(net, solver=tp.feedback.PredictiveSolver(tracking=False))
    algo.backward(x, y)
    layer = dict(zip(net.names, net.layers, strict=True))["conv_1"]
    with torch.no_grad():
        layer.theta.mul_(1.05)  # ‖θ − ω‖/‖θ‖ = 0.048, under the tolerance of 0.1
    before = layer.omega.clone()
    reports = [algo.backward(x, y).feedback["conv_1"] for _ in range(2)]
    assert torch.equal(layer.omega, before)
    assert all(float(report.mismatch) == pytest.approx(0.05 / 1.05, rel=0.01) for report in reports)
    with torch.no_grad():
        layer.theta.mul_(1.1)
    algo.backward(x, y)  # finds it
    algo.backward(x, y)  # mends it
    torch.testing.assert_close(layer.omega, layer.theta.reshape(layer.omega.shape))
