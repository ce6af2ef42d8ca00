"""Matched feedback with ω = θᵀ is backprop; mirror feedback is not (bar 1)."""

import pytest
import torch

import targetprop as tp
from cases import ACTIVATIONS, NETWORKS, make, symmetric
from targetprop.analysis import jacobian_mismatch
from targetprop.laboratory import activations
from targetprop.laboratory.activations import MODULES

BUILDERS = {name: getattr(activations, name) for name in [*ACTIVATIONS, "identity", "silu"]}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_symmetric_matched_feedback_gives_the_backprop_gradient(name, activation, bias):
    net, x, y = make(name, activation=activation, bias=bias)
    algo = tp.algorithms.LDRL(net, beta=1e-6, solver=tp.feedback.Symmetric())
    algo.backward(x, y)
    loss = torch.nn.functional.cross_entropy(net(x), y)
    expected = torch.autograd.grad(loss, list(net.forward_parameters()))
    for parameter, gradient in zip(net.forward_parameters(), expected, strict=True):
        assert tp.analysis.angle(gradient, parameter.grad) < 1e-4
        assert tp.analysis.distance(gradient, parameter.grad) < 1e-4


@pytest.mark.parametrize("name", ["lenet", "simple_vgg"])
def test_mirror_feedback_on_elu_leaves_an_angle(name):
    angles = {}
    for kind in ("matched", "mirror"):
        net, x, y = make(name, feedback=kind)
        result = tp.analysis.alignment(
            net, tp.algorithms.LDRL(net, 1e-6, tp.feedback.Symmetric()), x, y
        )
        angles[kind] = max(layer.update_angle for layer in result.values())
    assert angles["matched"] < 1e-4
    assert angles["mirror"] > 0.1


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_piecewise_linear_networks_are_exact_while_no_unit_crosses_its_kink(activation):
    net, x, y = make("resnet18", activation=activation)
    result = tp.analysis.alignment(
        net, tp.algorithms.LDRL(net, 1e-5, tp.feedback.Symmetric()), x, y
    )
    assert max(layer.update_distance for layer in result.values()) < 1e-10


@pytest.mark.parametrize("name", BUILDERS)
def test_matched_feedback_activation_has_the_forward_slope(name):
    rho = BUILDERS[name]()
    c = torch.linspace(-4, 4, 41, dtype=torch.float64) + 0.013
    y = rho.rho(c)
    slope = torch.func.jvp(rho.rho, (c,), (torch.ones_like(c),))[1]
    saved = rho.forward(c)[1]
    for feedback in (
        lambda d: rho.difference(saved, d),
        lambda d: rho.lift(saved, y + d, "matched"),
    ):
        derivative = torch.func.jvp(feedback, (torch.zeros_like(c),), (torch.ones_like(c),))[1]
        torch.testing.assert_close(derivative, slope, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_difference_is_the_difference_of_lifts_and_bounded_where_rho_is(name, size):
    rho = BUILDERS[name]()
    torch.manual_seed(0)
    c = 2 * torch.randn(200, dtype=torch.float64)
    y, saved = rho.forward(c)
    d = size * torch.randn_like(c)
    lifted = rho.lift(saved, y + d, "matched") - rho.lift(saved, y, "matched")
    torch.testing.assert_close(rho.difference(saved, d), lifted, atol=1e-10, rtol=1e-10)
    if name in ("tanh", "sigmoid"):
        assert rho.difference(saved, d).abs().max() < 1.4


@pytest.mark.parametrize("module", MODULES)
def test_every_activation_module_computes_its_activation_and_slope(module):
    layer = module().double()
    rho = MODULES[module](layer)
    c = torch.randn(50, dtype=torch.float64, requires_grad=True)
    out = layer(c)
    y, saved = rho.forward(c.detach())
    torch.testing.assert_close(y, out.detach())
    (slope,) = torch.autograd.grad(out.sum(), c)
    torch.testing.assert_close(rho.vjp(saved, torch.ones_like(slope)), slope)


@pytest.mark.parametrize("kind", ["matched", "mirror"])
@pytest.mark.parametrize("name", NETWORKS)
def test_stage_difference_is_that_of_its_lifts(name, kind):
    net, x, _ = make(name, feedback=kind)
    for layer, trace in net.leaf_traces(net.trace(x)[1]):
        d = 0.1 * torch.randn_like(trace.output)
        lifted = layer.stage.lift(trace.saved, trace.output + d) - layer.stage.lift(
            trace.saved, trace.output
        )
        torch.testing.assert_close(
            layer.stage.difference(trace.saved, trace.output, d), lifted, atol=1e-10, rtol=1e-10
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_jacobian_products_agree_with_autograd(name, activation):
    net, x, _ = make(name, activation=activation)
    for layer, trace in net.leaf_traces(net.trace(x)[1]):
        e, h = torch.randn_like(trace.input), torch.randn_like(trace.output)
        with torch.no_grad():
            jvp = layer.stage.jvp(trace.saved, layer.respond(e))
            vjp = layer.map.transpose(
                layer.stage.vjp(trace.saved, h), layer.theta, trace.input.shape
            )
        point = trace.input.detach().requires_grad_()
        (expected,) = torch.autograd.grad(layer(point), point, h)
        torch.testing.assert_close(vjp, expected, atol=1e-10, rtol=1e-8)
        torch.testing.assert_close((jvp * h).sum(), (expected * e).sum(), atol=1e-9, rtol=1e-8)


def test_jacobian_mismatch_agrees_with_full_jacobians():
    net, x, _ = make("lenet", feedback="mirror")
    leaves = net.leaf_traces(net.trace(x[:1])[1])
    for layer, trace in leaves[1:]:
        forward = torch.autograd.functional.jacobian(layer, trace.input.detach())
        n, m = trace.output.numel(), trace.input.numel()

        def feedback(d, layer=layer, trace=trace):
            return layer.difference(trace, d)

        back = torch.autograd.functional.jacobian(feedback, torch.zeros_like(trace.output))
        expected = (back.reshape(m, n) - forward.reshape(n, m).T).norm() / forward.norm()
        assert jacobian_mismatch(layer, trace, probes=200) == pytest.approx(
            expected.item(), rel=0.1
        )


def test_updates_are_local_and_leave_no_graph():
    net, x, y = make("simple_vgg")
    symmetric(net)
    report = tp.algorithms.LDRL(net).backward(x, y)
    assert not report.logits.requires_grad
    assert not report.loss.requires_grad
    assert all(p.grad is None or not p.grad.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("stride", "dilation"), [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((3, 2), (2, 1))]
)
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (3, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3)])
def test_weight_gradients_tap_by_tap_are_autograds(kernel, padding, stride, dilation):
    linear = tp.maps.Conv2dMap(stride, padding, dilation, 1)
    generator = torch.Generator().manual_seed(0)
    for size in ((5, 7), (7, 5), (1, 2)):
        x = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64)
        w = torch.randn(4, 2, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
        reach = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
        if any(n < r for n, r in zip(size, reach, strict=True)):
            continue  # the kernel does not fit
        y = linear.apply(x, w)
        e = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        (expected,) = torch.autograd.grad((e * y).sum(), w)
        torch.testing.assert_close(linear.correlate_taps(e, x, w.shape), expected)


def test_wide_layers_on_small_images_go_tap_by_tap(monkeypatch):
    calls = []
    linear = tp.maps.Conv2dMap((1, 1), (1, 1), (1, 1), 1)
    taken = tp.maps.Conv2dMap.correlate_taps
    monkeypatch.setattr(
        tp.maps.Conv2dMap, "correlate_taps", lambda *a: calls.append(a) or taken(*a)
    )
    for channels, size, expected in ((256, 3, 1), (256, 8, 0), (16, 3, 0)):
        x, e = torch.randn(2, channels, size, size), torch.randn(2, channels, size, size)
        calls.clear()
        found = linear.correlate(e, x, (channels, channels, 3, 3))
        assert len(calls) == expected
        torch.testing.assert_close(
            found,
            torch.nn.grad.conv2d_weight(x, (channels, channels, 3, 3), e, padding=1),
            rtol=1e-4,
            atol=1e-3,
        )
