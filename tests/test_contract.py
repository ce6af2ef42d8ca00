"""The contract that every algorithm and every solver keeps (bar 6)."""

import copy
import gc
import io

import pytest
import torch
import torch.nn.functional as F

import targetprop as tp
from cases import CASES, make

FIXED = ["backprop", "ldrl-fixed", "ldrl-symmetric", "fixed_weight_dtp", "kolen_pollack"]
FIXED += ["feedback_alignment", "direct_feedback_alignment"]
every = pytest.mark.parametrize("case", CASES)
kinds = pytest.mark.parametrize("kind", ["matched", "mirror"])


def tensors_with_graph():
    return sum(
        issubclass(type(o), torch.Tensor) and o.grad_fn is not None for o in gc.get_objects()
    )


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@every
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_shape_dtype_and_device_of_their_parameters(case, kind, dtype):
    net, x, y = make("lenet", dtype, feedback=kind)
    report = CASES[case](net).backward(x, y)
    for p in net.forward_parameters():
        assert p.grad is not None
        assert (p.grad.shape, p.grad.dtype, p.grad.device) == (p.shape, p.dtype, p.device)
        assert p.grad.isfinite().all()
    torch.testing.assert_close(report.logits, net(x).detach())
    torch.testing.assert_close(report.loss, F.cross_entropy(report.logits, y))


@every
@pytest.mark.parametrize("name", ["mlp", "resnet18", "odd_convolutions"])
def test_runs_on_every_topology(case, name):
    net, x, y = make(name)
    if name == "resnet18" and case in ("drl", "ddtp_linear"):
        pytest.skip("refuses residual blocks, see test_rivals")
    CASES[case](net).backward(x, y)
    assert all(layer.theta.grad.norm() >= 0 for layer in net.layers)


@every
@kinds
def test_deterministic(case, kind):
    results = []
    for _ in range(2):
        net, x, y = make("lenet", feedback=kind)
        algo = CASES[case](net)
        for _ in range(3):
            algo.backward(x, y)
        results.append((gradients(net), net.state_dict()))
    for a, b in zip(*results, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@every
def test_state_dict_round_trip_continues_bit_for_bit(case):
    net, x, y = make("simple_vgg")
    shapes = {"example_inputs": (x,)} if case == "direct_feedback_alignment" else {}
    algo = CASES[case](net, **shapes)
    for _ in range(2):
        algo.backward(x, y)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "algo": algo.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, _, _ = make("simple_vgg", seed=5)
    other = CASES[case](twin, **shapes)
    twin.load_state_dict(saved["net"])
    other.load_state_dict(saved["algo"])
    for each, rule in ((net, algo), (twin, other)):
        each.zero_grad()
        for _ in range(3):
            rule.backward(x, y)
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    assert all(torch.equal(gradients(net)[key], gradients(twin)[key]) for key in gradients(net))


@every
def test_no_hidden_state_between_instances_or_calls(case):
    """Work on one network leaves another's results alone; a pass is not remembered for the next."""
    net, x, y = make("lenet")
    alone = CASES[case](net)
    alone.backward(x, y)
    expected = copy.deepcopy(gradients(net))
    net, x, y = make("lenet")
    algo = CASES[case](net)
    other, _, _ = make("lenet", seed=3)
    CASES[case](other).backward(torch.randn_like(x)[:3], y[:3])
    net(torch.randn_like(x)[:5])
    algo.backward(x, y)
    assert all(torch.equal(expected[key], value) for key, value in gradients(net).items())


@every
def test_gradients_accumulate(case):
    if case not in FIXED:
        pytest.skip("learns between the two calls, so the two gradients differ")
    net, x, y = make("lenet")
    algo = CASES[case](net)
    algo.backward(x, y)
    once = copy.deepcopy(gradients(net))
    algo.backward(x, y)
    for key, value in gradients(net).items():
        torch.testing.assert_close(value, 2 * once[key])


@every
def test_no_graph_is_left_behind(case):
    net, x, y = make("lenet")
    algo = CASES[case](net)
    algo.backward(x, y)
    gc.collect()
    before = tensors_with_graph()
    reports = [algo.backward(x, y) for _ in range(3)]
    gc.collect()
    assert tensors_with_graph() <= before  # those of earlier tests may go
    assert not any(r.logits.requires_grad or r.loss.requires_grad for r in reports)


@every
@pytest.mark.parametrize("loss", ["mse", "smooth", "callable"])
def test_output_layer_gradient_is_exact_for_every_loss(case, loss):
    net, x, y = make("mlp")
    settings = {
        "mse": dict(loss="mse"),
        "smooth": dict(label_smoothing=0.1),
        "callable": dict(loss=lambda s, y: F.multi_margin_loss(s, y)),
    }[loss]
    expected = {
        "mse": lambda s: F.mse_loss(s, F.one_hot(y, 5).to(s)),
        "smooth": lambda s: F.cross_entropy(s, y, label_smoothing=0.1),
        "callable": lambda s: F.multi_margin_loss(s, y),
    }[loss]
    CASES[case](net, **settings).backward(x, y)
    last = net.layers[-1].forward_map
    torch.testing.assert_close(
        last.weight.grad, torch.autograd.grad(expected(net(x)), last.weight)[0]
    )


@every
def test_trains(case):
    net, x, y = make("mlp", activation="tanh")
    # without difference correction the reconstruction error over β must be small: a large β, a
    # well-trained auto-encoder
    careful = dict(beta=1.0, solver=tp.feedback.ReconstructionSolver(lr=0.02, iterations=5))
    algo = CASES[case](net, **(careful if case == "targetprop" else {}))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    first = algo.backward(x, y).loss
    for _ in range(100):
        opt.zero_grad()
        report = algo.backward(x, y)
        opt.step()
    assert report.loss < 0.8 * first


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_on_cuda(case):
    net, x, y = make("lenet", torch.float32)
    CASES[case](net.cuda()).backward(x.cuda(), y.cuda())
    assert all(p.grad.is_cuda for p in net.forward_parameters())


@pytest.mark.parametrize(
    "bad",
    [
        dict(beta=0),
        dict(loss="nll"),
        dict(label_smoothing=1.0),
        dict(loss="mse", label_smoothing=0.1),
    ],
)
def test_bad_settings_are_refused(bad):
    net, _, _ = make("mlp")
    with pytest.raises(ValueError):
        tp.algorithms.LDRL(net, **bad)


def test_foreign_state_is_refused():
    net, _, _ = make("mlp")
    with pytest.raises(ValueError, match="of another algorithm than backprop"):
        tp.algorithms.Backprop(net).load_state_dict({"feedback": {}})


def test_frozen_parameters_get_no_gradient():
    net, x, y = make("lenet")
    net.layers[0].theta.requires_grad_(False)
    tp.algorithms.LDRL(net, solver=tp.feedback.Fixed()).backward(x, y)
    assert net.layers[0].theta.grad is None
    assert net.layers[1].theta.grad is not None


def test_alignment_leaves_everything_as_it_was():
    net, x, y = make("lenet")
    algo = tp.algorithms.LDRL(net)
    algo.backward(x, y)
    weights, state, grads = copy.deepcopy((net.state_dict(), algo.state_dict(), gradients(net)))
    result = tp.analysis.alignment(net, algo, x, y)
    assert list(result) == list(net.names)
    assert result["conv_1"].mismatch is not None
    assert result["conv_0"].mismatch is None
    assert all(
        torch.equal(a, b) for a, b in zip(weights.values(), net.state_dict().values(), strict=True)
    )
    assert torch.equal(state["generators"]["conv_1"], algo.state_dict()["generators"]["conv_1"])
    assert all(torch.equal(grads[k], gradients(net)[k]) for k in grads)


@every
def test_cites_its_papers(case):
    net, _, _ = make("mlp")
    text = tp.cite(CASES[case](net))
    assert text.count("@") >= 1
    assert ("akrout2019" in text) == (
        case in ("ldrl", "ldrl-predictive", "weight_mirror", "kolen_pollack")
    )
