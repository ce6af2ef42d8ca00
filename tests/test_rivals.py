"""The algorithms that L-DRL is compared with, against laws, closed forms and transcriptions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import targetprop as tp
from cases import make, symmetric
from targetprop.algorithms.ddtp_linear import direct_drl
from targetprop.algorithms.drl import drl
from targetprop.citations import entries
from targetprop.feedback import losses
from targetprop.feedback.memory import Memory
from targetprop.laboratory.residual import Residual
from targetprop.properties import found
from transcription import feedback_of

alg = tp.algorithms


@pytest.mark.parametrize("name", ["mlp", "lenet", "simple_vgg", "resnet18", "odd_convolutions"])
def test_feedback_alignment_with_symmetric_weights_is_backprop(name):
    net, x, y = make(name)
    symmetric(net)
    expected = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.forward_parameters()))
    alg.FeedbackAlignment(net).backward(x, y)
    for parameter, gradient in zip(net.forward_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-12, rtol=1e-9)


def test_feedback_alignment_with_random_weights_is_autograd_through_omega():
    net, x, y = make("mlp")
    alg.FeedbackAlignment(net).backward(x, y)
    with torch.no_grad():
        logits, traces = net.trace(x)
    (error,) = torch.autograd.grad(
        F.cross_entropy(leaf := logits.clone().requires_grad_(), y), leaf
    )
    for layer, trace in reversed(net.leaf_traces(traces)):
        expected = torch.autograd.grad(layer(trace.input.detach()), layer.theta, error)[0]
        torch.testing.assert_close(layer.theta.grad, expected)
        if layer.has_feedback:
            pre = layer.forward_map(trace.input).detach().requires_grad_()
            gated = torch.autograd.grad(layer.stage.forward(pre)[0], pre, error)[0]
            error = (gated @ layer.omega).detach()


def test_kolen_pollack_shrinks_the_difference_by_the_weight_decay():
    net, x, y = make("simple_vgg")
    algo = alg.KolenPollack(net)
    lr, decay = 0.05, 0.1
    opt = torch.optim.SGD(net.parameters(), lr, weight_decay=decay)
    algo.follow(opt)
    before = [(la.omega - la.theta).detach().clone() for la in net.layers[1:]]
    for _ in range(20):
        opt.zero_grad()
        algo.backward(x, y)
        opt.step()
    for layer, difference in zip(net.layers[1:], before, strict=True):
        torch.testing.assert_close(
            layer.omega - layer.theta, difference * (1 - lr * decay) ** 20, atol=1e-12, rtol=1e-10
        )


def test_weight_mirror_turns_towards_theta():
    net, x, y = make("simple_vgg")
    algo = alg.WeightMirror(net)
    for _ in range(100):
        net.zero_grad()
        algo.backward(x, y)
    for layer in net.layers[1:]:
        assert tp.analysis.angle(layer.theta, layer.omega) < 25


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet18"])
def test_direct_feedback_alignment_broadcasts_the_output_error(name):
    net, x, y = make(name)
    algo = alg.DirectFeedbackAlignment(net)
    algo.backward(x, y)
    with torch.no_grad():
        logits, traces = net.trace(x)
    (error,) = torch.autograd.grad(
        F.cross_entropy(leaf := logits.clone().requires_grad_(), y), leaf
    )
    leaves = net.leaf_traces(traces)
    blocks = [block for block in net.blocks if isinstance(block, Residual)]
    last_of_arms = {
        id(arm[-1]) for block in blocks for arm in (block.branch, block.shortcut) if len(arm)
    }
    stem = net.layers[0] if name == "resnet18" else None
    for (layer, trace), (reader, _) in zip(leaves, [*leaves[1:], (None, None)], strict=True):
        if id(layer) in last_of_arms or layer is stem:
            continue  # a skip brings its own error too
        carried = (
            error
            if reader is None
            else (error @ reader.forward_map.direct_feedback_weight).view_as(trace.output)
        )
        expected = torch.autograd.grad(layer(trace.input.detach()), layer.theta, carried)[0]
        torch.testing.assert_close(layer.theta.grad, expected)


@pytest.mark.parametrize("kind", ["matched", "mirror"])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_drl_loss_and_gradient_follow_the_equation(kind, damping):
    net, x, _ = make("lenet", feedback=kind)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
    logits, sigma = leaves[-1][1].output, 0.1

    def back(layer, trace, d, omega):
        """G(s + d) − G(s) with plain operators."""
        if kind == "mirror":
            return feedback_of(layer, trace, trace.output + d, omega) - feedback_of(
                layer, trace, trace.output, omega
            )
        lifted = layer.stage.lift(trace.saved, trace.output + d) - layer.stage.lift(
            trace.saved, trace.output
        )
        shape = trace.input.shape
        if isinstance(layer.forward_map, torch.nn.Linear):
            return lifted @ omega
        return F.conv_transpose2d(lifted, omega, None, 1, layer.forward_map.padding).view(shape)

    for i in range(1, len(leaves)):
        layer, trace = leaves[i]
        e, h = sigma * torch.randn_like(trace.input), sigma * torch.randn_like(logits)
        omega = layer.omega.detach().clone().requires_grad_()
        with torch.no_grad():
            moved = trace.input + e
            for la, _ in leaves[i:]:
                moved = la(moved)
        total = 0.0
        for start, target, weight in ((moved - logits, e, 1.0), (h, torch.zeros_like(e), damping)):
            d = start
            for la, tr in reversed(leaves[i + 1 :]):
                d = back(la, tr, d, la.omega.detach())
            total = (
                total
                + weight
                * (back(layer, trace, d, omega) - target).square().flatten(1).sum(1).mean()
                / sigma**2
            )
        (expected,) = torch.autograd.grad(total, omega)
        with torch.no_grad():
            loss, gradient = drl(leaves[i:], logits, e, h, sigma, damping)
        torch.testing.assert_close(loss, total.detach(), atol=1e-10, rtol=1e-9)
        torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-8)


def test_drl_tends_to_the_damped_inverse_where_ldrl_tends_to_the_transpose():
    net = tp.networks.mlp((4,), 4, (4, 4), activation="identity").double()
    with torch.no_grad():
        for layer in net.layers:
            layer.theta.copy_(
                torch.eye(4) + 0.4 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
            )
    x = torch.randn(4000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    damping = 0.5
    algo = alg.DRL(net, noise=0.1, iterations=500, damping=damping, weight_decay=0.0)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
        for algo.lr in (0.02, 0.002):
            algo.reconstruct(leaves)
        _, second, third = (layer.theta for layer in net.layers)
        back = torch.eye(4, dtype=torch.float64)
        for layer, jacobian in ((net.layers[2], third), (net.layers[1], third @ second)):
            # through the feedback layers from the output to this layer's input
            back = layer.omega.T @ back
            inverse = jacobian.T @ torch.linalg.inv(
                jacobian @ jacobian.T + damping * torch.eye(4, dtype=torch.float64)
            )
            torch.testing.assert_close(back, inverse, atol=0.02, rtol=0)
        for layer, trace in leaves[1:]:
            for _ in range(400):
                e, h = 0.1 * torch.randn_like(trace.input), 0.1 * torch.randn_like(trace.output)
                layer.omega.sub_(losses.ldrl(layer, trace, e, h)[1], alpha=2.0)
            torch.testing.assert_close(layer.omega.data, layer.theta.data, atol=0.05, rtol=0)


def test_ddtp_linear_loss_and_gradient_follow_the_equation():
    net, x, y = make("lenet")
    algo = alg.DDTPLinear(net, beta=0.2, iterations=0)
    algo.backward(x, y)
    with torch.no_grad():
        logits, traces = net.trace(x)
        leaves = net.leaf_traces(traces)
    target = logits - 0.2 * (logits.softmax(1) - F.one_hot(y, 5))
    for i, name in enumerate(net.names[:-1]):
        layer, trace = leaves[i]
        q = algo.directs[name].clone().requires_grad_()
        e = 0.1 * torch.randn_like(trace.output)
        moved = trace.output + e
        with torch.no_grad():
            for la, _ in leaves[i + 1 :]:
                moved = la(moved)
        s = trace.output.flatten(1)
        expected = ((s + moved @ q - logits @ q) - (s + e.flatten(1))).square().sum(
            1
        ).mean() / 0.1**2
        loss, gradient = direct_drl(q.detach(), moved - logits, e.flatten(1), 0.1)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, q)[0])
        goal = trace.output + ((target - logits) @ q.detach()).view_as(trace.output)
        local = 0.5 * (layer(trace.input.detach()) - goal).square().flatten(1).sum(1).mean() / 0.2
        torch.testing.assert_close(layer.theta.grad, torch.autograd.grad(local, layer.theta)[0])


def test_ddtp_linear_learns_to_reconstruct():
    net, x, y = make("mlp")
    algo = alg.DDTPLinear(net, noise=0.1, lr=0.01, iterations=1, weight_decay=0.0)
    found = []
    for _ in range(300):
        net.zero_grad()
        found.append(sum(f.loss.item() for f in algo.backward(x, y).feedback.values()))
    assert sum(found[-20:]) < 0.9 * sum(found[:20])


@pytest.mark.parametrize("make_algo", [alg.DRL, alg.DDTPLinear])
def test_end_to_end_reconstruction_refuses_residual_blocks(make_algo):
    with pytest.raises(ValueError, match="residual"):
        make_algo(make("resnet18")[0])


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_ddtp_linear_in_parallel_learns_from_the_targets_of_untrained_feedback(name):
    gradients = {}
    for schedule, iterations in (("sequential", 3), ("parallel", 3), ("parallel", 0)):
        net, x, y = make(name)
        alg.DDTPLinear(net, lr=0.1, iterations=iterations, schedule=schedule).backward(x, y)
        gradients[schedule, iterations] = net.layers[0].theta.grad
    torch.testing.assert_close(gradients["parallel", 3], gradients["parallel", 0])
    assert (gradients["sequential", 3] - gradients["parallel", 3]).norm() > 1e-4


def test_drl_schedules():
    with pytest.raises(ValueError, match="schedule"):
        alg.DRL(make("mlp")[0], schedule="random")
    results = {}
    for schedule in ("sequential", "parallel"):
        net, x, y = make("mlp")
        before = net.layers[-1].omega.detach().clone()
        algo = alg.DRL(net, noise=0.1, lr=0.1, iterations=5, schedule=schedule)
        algo.backward(x, y)
        assert (net.layers[-1].omega - before).norm() > 1e-3
        results[schedule] = net.layers[0].theta.grad
    net, x, y = make("mlp")
    alg.LDRL(net, beta=algo.beta, solver=tp.feedback.Fixed()).backward(x, y)
    # the targets came before ω moved
    torch.testing.assert_close(results["parallel"], net.layers[0].theta.grad)
    assert (results["sequential"] - results["parallel"]).norm() > 1e-4


def test_adam_solver_takes_torch_adam_steps():
    net, x, _ = make("lenet", feedback="mirror")
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        twin = torch.nn.Parameter(layer.omega.clone())
        optimizer = torch.optim.Adam([twin], lr=0.01, weight_decay=0.1)
        solver = tp.feedback.AdamSolver(noise=0.3, lr=0.01, samples=3, weight_decay=0.1)
        ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        memory = Memory()
        for _ in range(4):
            start = layer.omega.clone()
            gradients = []
            for _ in range(3):
                e = 0.3 * torch.randn(trace.input.shape, generator=theirs, dtype=x.dtype)
                h = 0.3 * torch.randn(trace.output.shape, generator=theirs, dtype=x.dtype)
                gradients.append(losses.ldrl(layer, trace, e, h)[1])
            twin.grad = sum(gradients) / 3
            optimizer.step()
            solver.train(0, layer, trace, memory, ours)
            torch.testing.assert_close(layer.omega.data, twin.data, atol=1e-12, rtol=1e-10)
            assert not torch.equal(start, layer.omega)


@pytest.mark.parametrize("kind", ["matched", "mirror"])
def test_jacobian_matching_is_the_least_squares_solution(kind):
    net, x, _ = make("mlp", activation="tanh", feedback=kind)
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        tp.feedback.JacobianMatching().train(
            0, layer, trace, Memory(), torch.Generator().manual_seed(0)
        )
    omega = layer.omega.detach().clone().requires_grad_()
    total = 0.0
    for b in range(len(x)):  # the Jacobians of every sample, by autograd
        s, point = trace.output[b], trace.input[b]
        forward = torch.autograd.functional.jacobian(lambda v: layer(v), point)
        pre = layer.forward_map(point).detach()
        slope = 1 - torch.tanh(s if kind == "mirror" else pre) ** 2
        total = total + ((omega.T * slope) - forward.T).square().sum()
    (gradient,) = torch.autograd.grad(total, omega)
    assert gradient.abs().max() < 1e-10
    assert (layer.omega - layer.theta).norm() > 1e-3 or kind == "matched"


def test_the_documentation_shows_the_table_of_algorithms():
    page = (Path(__file__).parent.parent / "docs" / "laboratory.md").read_text(encoding="utf-8")
    assert tp.algorithms.table() in page
    assert all(
        f"`{kind.__name__}" in tp.algorithms.table() for kind in tp.algorithms.ALGORITHMS.values()
    )


def test_a_new_file_is_a_new_algorithm(tmp_path, monkeypatch):
    """The registry finds classes by their files: nothing else names them."""
    package = tmp_path / "own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "halved.py").write_text(
        "import targetprop as tp\nclass Halved(tp.algorithms.LDRL):\n    rows = ()\n"
        "class Helper:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own

    assert {name: kind.__name__ for name, kind in found(own, "rows").items()} == {
        "halved": "Halved"
    }


def test_every_entry_of_the_bibliography_is_cited_by_something():
    named = {
        key
        for kind in [*alg.ALGORITHMS.values(), *tp.rules.RULES.values()]
        for key in getattr(kind, "papers", ())
    }
    assert set(entries()) == named | {"rumelhart1986", "akrout2019"}
    feedback = tp.attach(torch.nn.Linear(3, 2), rule="sign_symmetry")
    assert "liao2016" in tp.cite(feedback)
