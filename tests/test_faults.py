"""Faults of the explicit engine, once silent: each is right now, or said in one sentence."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import targetprop as tp
import worlds
from cases import make, symmetric
from targetprop.algorithms import LDRL, Backprop, FeedbackAlignment
from targetprop.feedback import CorrelationSolver, CoupledSolver, PredictiveSolver


def chain():
    return nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 7), nn.ELU(), nn.Linear(7, 5))


def batch():
    torch.manual_seed(1)
    return torch.randn(9, 6), torch.randint(5, (9,))


def test_a_module_without_weights_may_stand_twice():
    act, pool = nn.ReLU(), nn.MaxPool2d(2)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        act,
        pool,
        nn.Conv2d(3, 4, 3, padding=1),
        act,
        pool,
        nn.Flatten(),
        nn.Linear(16, 5),
    ).double()
    net = symmetric(tp.pair(module))
    x, y = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    torch.testing.assert_close(net(x), module(x))
    LDRL(net, beta=1e-7, solver=tp.feedback.Symmetric()).backward(x, y)
    expected = torch.autograd.grad(F.cross_entropy(module(x), y), list(net.forward_parameters()))
    for parameter, gradient in zip(net.forward_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)


def test_a_module_with_weights_may_not():
    linear = nn.Linear(6, 6)
    with pytest.raises(tp.PairingError, match=r"'0' and '2' are one module \(Linear\)"):
        tp.pair(nn.Sequential(linear, nn.Tanh(), linear, nn.Linear(6, 2)))


HOOKED = {
    "weight norm": lambda m: torch.nn.utils.weight_norm(m),
    "spectral norm": lambda m: torch.nn.utils.spectral_norm(m),
    "pruning": lambda m: prune.random_unstructured(m, "weight", 0.5),
    "parametrisation": lambda m: parametrizations.weight_norm(m),
    "forward hook": lambda m: m.register_forward_hook(lambda *a: None),
    "backward hook": lambda m: m.register_full_backward_hook(lambda *a: None),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", HOOKED)
def test_hooks_are_refused_before_and_after_pairing(kind):
    module = chain()
    HOOKED[kind](module[2])
    with pytest.raises(tp.PairingError, match="which explicit passes never run"):
        tp.pair(module)
    module = chain()
    net = tp.pair(module)
    HOOKED[kind](module[2])
    with pytest.raises(tp.PairingError, match=r"layer '\w+_1' .* which explicit passes never run"):
        LDRL(net).backward(*batch())
    feedback = tp.attach(module)  # and where they are sent, they work
    assert max(feedback.mismatch().values()) < 0.01
    F.cross_entropy(module(batch()[0]), batch()[1]).backward()


def test_autocast_and_short_weights_are_refused_with_the_remedy():
    x, y = batch()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"net.compute_in\(torch.bfloat16\)"),
    ):
        LDRL(tp.pair(chain())).backward(x, y)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=rf"got {dtype}; call net.compute_in"):
            LDRL(tp.pair(chain()).to(dtype)).backward(x.to(dtype), y)


def test_bad_batches_are_refused():
    x, y = batch()
    for kind in (LDRL, Backprop, FeedbackAlignment):
        with pytest.raises(ValueError, match=r"a batch of shape \(0, 6\) has no samples"):
            kind(tp.pair(chain())).backward(x[:0], y[:0])
    for kind in (LDRL, FeedbackAlignment):
        with pytest.raises(ValueError, match=r"the input needs a gradient.*give x.detach\(\)"):
            kind(tp.pair(chain())).backward(x.clone().requires_grad_(), y)


def test_wrapped_networks_are_refused():
    with pytest.raises(TypeError, match=r"got DataParallel; give it the module within"):
        LDRL(nn.DataParallel(tp.pair(chain())))


def alone_among_several():
    import warnings

    import torch.distributed as dist

    dist.init_process_group("gloo")
    algo = LDRL(tp.pair(chain()))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            algo.backward(*batch())
    said = [t for t in told if "gradients are not averaged" in " ".join(str(t.message).split())]
    dist.barrier()
    return 0 if len(said) == 1 else 1


def test_an_algorithm_alone_among_several_processes_says_so():
    assert worlds.codes(worlds.spawn(alone_among_several, 2)) == [0, 0]


@pytest.mark.parametrize("name", ["mlp", "simple_vgg", "resnet18"])
def test_networks_are_pickled_and_copied(name):
    net, x, y = make(name, torch.float32)
    net.eval()
    net.layers[1].omega.requires_grad_(True)
    for copied in (lambda net: pickle.loads(pickle.dumps(net)), copy.deepcopy):
        other = copied(net)
        assert not other.training
        assert other.layers[1].omega.requires_grad
        assert not other.layers[2].omega.requires_grad
        assert [k for k, _ in other.named_parameters()] == [k for k, _ in net.named_parameters()]
        for a, b in zip(other.parameters(), net.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a is not b
        reports = [LDRL(n, seed=1).backward(x, y) for n in (net, other)]
        assert torch.equal(reports[0].logits, reports[1].logits)
        for a, b in zip(other.forward_parameters(), net.forward_parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        net.zero_grad()


class Scaled(nn.Module):
    """y = c (x θᵀ) + b."""

    def __init__(self, c, *shape):
        super().__init__()
        self.weight, self.bias, self.c = (
            nn.Parameter(torch.randn(shape) * 0.3),
            nn.Parameter(torch.zeros(shape[0])),
            c,
        )

    def forward(self, x):
        return self.c * F.linear(x, self.weight) + self.bias


@pytest.fixture
def registered():
    tp.register(Scaled, lambda m: lambda x, w: m.c * F.linear(x, w), bias_dim=-1)
    yield
    del tp.maps.MAPS[Scaled]


@pytest.mark.parametrize("c", [4.0, 2.0, -1.0, 1.0, 0.1])
@pytest.mark.parametrize(
    "solver", [PredictiveSolver(tolerance=0.05), CoupledSolver(), CorrelationSolver(iterations=200)]
)
def test_a_scaled_map_learns_like_an_unscaled_one(registered, solver, c):
    torch.manual_seed(0)
    net = tp.pair(
        nn.Sequential(nn.Linear(6, 12), nn.ELU(), Scaled(c, 10, 12), nn.ELU(), nn.Linear(10, 5))
    )
    algo = LDRL(net, solver=solver)
    report = algo.backward(*batch())
    layer = net.layers[1]
    assert (layer.omega - layer.theta).norm() / layer.theta.norm() < (
        0.3 if isinstance(solver, CorrelationSolver) else 0.06
    )
    iterations = report.feedback["scaled_1"].iterations
    assert iterations <= {PredictiveSolver: 40}.get(type(solver), 300)


def test_feedback_has_no_gradient_outside_the_step():
    x, y = batch()
    net, plain = tp.pair(chain()), None
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    algo = LDRL(net)
    algo.backward(x, y)
    plain = copy.deepcopy(net)
    Backprop(plain).backward(x, y)
    assert all(p.grad is None for p in net.feedback_parameters())
    seen = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    wanted = torch.nn.utils.clip_grad_norm_(list(plain.forward_parameters()), 0.5)
    torch.testing.assert_close(seen, wanted, rtol=0.1, atol=0)
    before = [
        (layer.theta.detach().clone(), layer.omega.detach().clone()) for layer in net.layers[1:]
    ]
    optimizer.step()
    for (theta, omega), layer in zip(before, net.layers[1:], strict=True):
        torch.testing.assert_close(layer.omega - omega, layer.theta - theta)
    assert all(p.grad is None for p in net.feedback_parameters())

    def closure():
        optimizer.zero_grad()
        return algo.backward(x, y).loss

    before = [
        (layer.theta.detach().clone(), layer.omega.detach().clone()) for layer in net.layers[1:]
    ]
    optimizer.step(closure)
    for (theta, omega), layer in zip(before, net.layers[1:], strict=True):
        assert not torch.equal(layer.theta, theta)
        torch.testing.assert_close(layer.omega - omega, layer.theta - theta, atol=1e-3, rtol=0.2)


def test_a_summed_loss_is_refused():
    x, y = batch()
    summed = LDRL(
        tp.pair(chain()), loss=lambda logits, y: F.cross_entropy(logits, y, reduction="sum")
    )
    with pytest.raises(
        ValueError, match=r"it is a sum, and targets need the batch mean; use reduction='mean'"
    ):
        summed.backward(x, y)
    LDRL(tp.pair(chain()), loss=F.cross_entropy).backward(x, y)


def test_learn_may_read_every_output():
    seen = []

    class Curious(LDRL):
        def learn(self, layer, trace, difference):
            seen.append(bool(trace.output.isfinite().all()))
            return super().learn(layer, trace, difference)

    net, x, y = make("resnet18")
    Curious(net).backward(x, y)
    assert all(seen)
    assert len(seen) == len(net.layers)


def test_parameters_of_the_loss_learn():
    x, y = batch()
    for kind in (LDRL, Backprop, FeedbackAlignment):
        temperature = nn.Parameter(torch.tensor(2.0))
        net = tp.pair(chain())
        kind(net, loss=lambda logits, y, t=temperature: F.cross_entropy(logits * t, y)).backward(
            x, y
        )
        (wanted,) = torch.autograd.grad(F.cross_entropy(net(x) * temperature, y), temperature)
        torch.testing.assert_close(temperature.grad, wanted)
