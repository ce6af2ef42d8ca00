"""Batch normalisation: exact in training and in evaluation, running statistics as torch's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp
from cases import symmetric


def nets():
    torch.manual_seed(0)
    yield tp.networks.resnet18(
        (2, 8, 8), 5, (3, 4, 5, 6), activation="elu", batch_norm=True
    ).double()
    dense = [
        nn.Flatten(),
        nn.Linear(128, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Linear(9, 6),
        nn.BatchNorm1d(6),
    ]
    yield tp.pair(nn.Sequential(*dense, nn.Tanh(), nn.Linear(6, 5))).double()
    images = [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, affine=False),
        nn.ELU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    images += [nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ELU(), nn.Flatten(), nn.Linear(12, 5)]
    yield tp.pair(nn.Sequential(*images)).double()


def scrambled(net):
    """Statistics and affine parameters that are not those of initialisation."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator))
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            if module.weight is not None:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(shape, generator=generator))
    return net


@pytest.mark.parametrize("which", range(3))
def test_updates_are_the_backprop_gradient_with_running_statistics(which):
    net = symmetric(scrambled(list(nets())[which])).eval()
    x, y = torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.randint(5, (8,))
    parameters = list(net.forward_parameters())
    expected = torch.autograd.grad(F.cross_entropy(net(x), y), parameters)
    tp.algorithms.LDRL(net, beta=1e-7, solver=tp.feedback.Symmetric()).backward(x, y)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
    assert any(p.grad.norm() > 0 for layer in net.layers for p in layer.norms.parameters())


@pytest.mark.parametrize("which", range(3))
def test_updates_are_the_backprop_gradient_in_training(which):
    net = symmetric(scrambled(list(nets())[which]))
    x, y = torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.randint(5, (8,))
    twin = copy.deepcopy(net)
    expected = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.forward_parameters()))
    tp.algorithms.LDRL(net, beta=1e-7, solver=tp.feedback.Symmetric()).backward(x, y)
    for parameter, gradient in zip(net.forward_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_forward_and_running_statistics_are_torchs(momentum):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    twin = copy.deepcopy(plain)
    net = tp.pair(twin)
    for _ in range(3):
        x = torch.randn(8, 2, 8, 8)
        torch.testing.assert_close(net(x), plain(x))
        with torch.no_grad():
            torch.testing.assert_close(net.trace(x)[0], plain(x))
    for ours, theirs in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(net.eval()(x), plain.eval()(x))


def test_probes_and_measurements_leave_running_statistics_alone():
    net = next(iter(nets())).float()
    x, y = torch.randn(8, 2, 8, 8), torch.randint(5, (8,))
    algo = tp.algorithms.LDRL(net, solver=tp.feedback.SGDSolver(iterations=3))
    algo.backward(x, y)
    counts = [b.item() for name, b in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert set(counts) == {1}
    before = [b.clone() for b in net.buffers()]
    tp.analysis.alignment(net, algo, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_training_with_batch_norm_learns():
    net = next(iter(nets())).float()
    algo = tp.algorithms.LDRL(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    x, y = torch.randn(64, 2, 8, 8), torch.randint(5, (64,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(algo.backward(x, y).loss.item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 5)),
        nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            tp.Sum(nn.Conv2d(3, 3, 1)),
            nn.BatchNorm2d(3),
            nn.Flatten(),
            nn.Linear(108, 5),
        ),
    ],
)
def test_normalisation_elsewhere_is_refused(module):
    with pytest.raises(tp.PairingError, match="behind a linear map"):
        tp.pair(module)
