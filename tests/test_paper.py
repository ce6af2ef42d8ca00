"""The paper's solver, targets, gradients against an autograd transcription of PAPER §2 (bar 2)."""

import pytest
import torch
import torch.nn.functional as F

import targetprop as tp
import transcription
from cases import make
from targetprop.feedback import losses
from targetprop.feedback.memory import Memory
from transcription import feedback_of


@pytest.mark.parametrize("activation", ["elu", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("name", ["mlp", "lenet", "simple_vgg", "resnet18"])
def test_ldrl_loss_and_gradient(name, activation):
    net, x, _ = make(name, activation=activation, feedback="mirror")
    checked = 0
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
    for layer, trace in leaves:
        if not layer.has_feedback:
            continue
        e, h = 0.4 * torch.randn_like(trace.input), 0.4 * torch.randn_like(trace.output)
        with torch.no_grad():
            loss, gradient = losses.ldrl(layer, trace, e, h)
        expected, expected_gradient = transcription.ldrl(layer, trace, e, h)
        torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-10, rtol=1e-10)
        checked += 1
    assert checked == len(leaves) - 1


@pytest.mark.parametrize("activation", ["elu", "relu"])
@pytest.mark.parametrize("name", ["mlp", "lenet", "simple_vgg"])
def test_targets_and_forward_gradients(name, activation):
    net, x, y = make(name, activation=activation, feedback="mirror")
    beta = 0.7
    tp.algorithms.LDRL(net, beta, tp.feedback.Fixed()).backward(x, y)
    with torch.no_grad():
        logits, traces = net.trace(x)
        leaves = net.leaf_traces(traces)
        target = logits - beta * (logits.softmax(1) - F.one_hot(y, logits.shape[1]))
    for n in reversed(range(len(leaves))):
        layer, trace = leaves[n]
        local = 0.5 * (layer(trace.input.detach()) - target).square().flatten(1).sum(1).mean()
        expected = torch.autograd.grad(local, list(layer.forward_parameters()))
        for parameter, gradient in zip(layer.forward_parameters(), expected, strict=True):
            torch.testing.assert_close(beta * parameter.grad, gradient, atol=1e-10, rtol=1e-10)
        if n:
            with torch.no_grad():
                back = feedback_of(layer, trace, target, layer.omega) - feedback_of(
                    layer, trace, trace.output, layer.omega
                )
                target = trace.input + back
                target = target.reshape(leaves[n - 1][1].output.shape)


def test_sgd_solver_takes_torch_sgd_steps_with_persistent_momentum():
    net, x, _ = make("lenet", feedback="mirror")
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        twin = torch.nn.Parameter(layer.omega.clone())
        optimizer = torch.optim.SGD([twin], lr=0.01, momentum=0.9)
        solver = tp.feedback.SGDSolver(noise=(0.9, 0.3), lr=(0.5, 0.01), iterations=(1, 3))
        ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        memory = Memory()
        for _ in range(2):
            start = twin.detach().clone()
            solver.train(1, layer, trace, memory, ours)
            moved = layer.omega.clone()
            layer.omega.copy_(start)
            for _ in range(3):
                e = 0.3 * torch.randn(trace.input.shape, generator=theirs, dtype=x.dtype)
                h = 0.3 * torch.randn(trace.output.shape, generator=theirs, dtype=x.dtype)
                twin.grad = losses.ldrl(layer, trace, e, h)[1]
                optimizer.step()
                layer.omega.copy_(twin)
            torch.testing.assert_close(moved, twin.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["matched", "mirror"])
def test_reconstruction_loss_gradients(kind):
    net, x, _ = make("lenet", feedback=kind)
    with torch.no_grad():
        leaves = net.leaf_traces(net.trace(x)[1])
    for layer, trace in leaves[1:]:
        for parameter in layer.feedback_parameters():
            parameter.requires_grad_()
        e = 0.1 * torch.randn_like(trace.input)
        with torch.no_grad():
            loss, gradient, bias_gradient = losses.reconstruction(layer, trace, e)
            noisy = layer.trace(trace.input + e)
        expected = (
            (layer.reconstruct(noisy, noisy.output) - noisy.input).square().flatten(1).sum(1).mean()
        )
        by_autograd = torch.autograd.grad(expected, list(layer.feedback_parameters()))
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, by_autograd[0])
        torch.testing.assert_close(bias_gradient, by_autograd[1])


def test_linear_layer_optimum_is_the_transpose_in_closed_form():
    """E L = σ²(‖ω‖² − 2⟨θ, ω⟩) for a linear layer, so that E ∂L/∂ω = 2σ²(ω − θ)."""
    net = tp.networks.mlp((6,), 3, (5,), activation="identity").double()
    x = torch.randn(20000, 6, dtype=torch.float64)
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(x)[1])[1]
        e, h = 0.5 * torch.randn_like(trace.input), 0.5 * torch.randn_like(trace.output)
        _, gradient = losses.ldrl(layer, trace, e, h)
        torch.testing.assert_close(
            gradient, 2 * 0.25 * (layer.omega - layer.theta), atol=0.02, rtol=0
        )


@pytest.mark.parametrize("kind", ["matched", "mirror"])
def test_a_layer_before_a_sum_learns_from_the_local_loss_as_every_other(kind):
    """Its gradient is that of ⟨d, s⟩, d the difference at the block's output s, for large β too."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d
    block = tp.Sum(
        torch.nn.Sequential(conv(2, 3, 3, padding=1), torch.nn.ELU(), conv(3, 2, 3, padding=1))
    )
    stem = torch.nn.Sequential(conv(1, 2, 3), torch.nn.ELU())
    net = tp.pair(
        torch.nn.Sequential(
            *stem, block, torch.nn.ELU(), torch.nn.Flatten(), torch.nn.Linear(18, 4)
        ),
        kind,
    ).double()
    x, y, beta = torch.randn(6, 1, 5, 5, dtype=torch.float64), torch.arange(6) % 4, 2.0
    tp.algorithms.LDRL(net, beta=beta, solver=tp.feedback.Fixed()).backward(x, y)
    with torch.no_grad():
        logits, traces = net.trace(x)
        error = logits.softmax(1) - F.one_hot(y, 4)
        d = net.layers[-1].difference(traces[-1], -beta * error)
    last = net.layers[2]  # of the branch
    inner = traces[1].branch[-1].input
    s = net.blocks[1].stage.forward(last(inner) + traces[1].branch[0].input)[0]
    expected = torch.autograd.grad((d * s).sum() / (-beta * len(x)), last.theta)[0]
    torch.testing.assert_close(last.theta.grad, expected, atol=1e-12, rtol=1e-10)
