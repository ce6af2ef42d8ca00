"""Small networks and batches that the tests share."""

import torch
from torch import nn

import models
import targetprop as tp
from targetprop.algorithms import ALGORITHMS
from targetprop.feedback import SOLVERS
from targetprop.models import plain

ACTIVATIONS = ["elu", "relu", "leaky_relu", "tanh", "sigmoid", "gelu"]


def odd_convolutions(activation="elu", bias=True, feedback="matched"):
    """Strided, dilated, grouped and padded convolutions; overlapping max and average pooling."""
    act = plain.activation_module
    return tp.pair(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=bias),
            act(activation),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 6, 3, stride=2, padding=2, groups=2, bias=bias),
            act(activation),
            nn.AvgPool2d(2, 1),
            nn.Conv2d(6, 4, (3, 2), padding="same", dilation=(1, 2), bias=bias),
            act(activation),
            nn.Conv2d(4, 5, 2, padding=1, padding_mode="circular", bias=bias),
            act(activation),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(20, 7, bias=bias),
            act(activation),
            nn.Linear(7, 5, bias=bias),
        ),
        feedback,
    )


NETWORKS = {
    "mlp": ((1, 5, 5), lambda **k: tp.networks.mlp((1, 5, 5), 5, (9, 7), **k)),
    "lenet": ((2, 12, 12), lambda **k: tp.networks.lenet((2, 12, 12), 5, (3, 4, 8), **k)),
    "simple_vgg": ((2, 16, 16), lambda **k: tp.networks.simple_vgg((2, 16, 16), 5, (4, 5, 6), **k)),
    "resnet18": ((2, 8, 8), lambda **k: tp.networks.resnet18((2, 8, 8), 5, (3, 4, 5, 6), **k)),
    "odd_convolutions": ((2, 13, 11), odd_convolutions),
}


def make(name, dtype=torch.float64, seed=0, **kwargs):
    """(network, x, y) of a case."""
    torch.manual_seed(seed)
    shape, build = NETWORKS[name]
    net = build(**kwargs).to(dtype)
    return net, torch.randn(8, *shape, dtype=dtype), torch.randint(5, (8,))


def symmetric(net):
    """Set every ω to θ."""
    with torch.no_grad():
        for layer in net.layers:
            if layer.has_feedback:
                layer.omega.copy_(layer.theta)
    return net


SETTINGS = {
    "sgd": dict(iterations=2, lr=1e-3),
    "reconstruction": dict(iterations=2),
    "adam": dict(samples=2),
    "correlation": dict(iterations=2, first_iterations=2),
    "coupled": dict(iterations=2, first_iterations=3),
}
CASES = {name: lambda net, make=kind, **k: make(net, **k) for name, kind in ALGORITHMS.items()} | {
    f"ldrl-{name}": lambda net, kind=kind, name=name, **k: tp.algorithms.LDRL(
        net, solver=kind(**SETTINGS.get(name, {})), **k
    )
    for name, kind in SOLVERS.items()
}
"""Every algorithm, and L-DRL with every solver: (network, settings) ↦ algorithm."""


CARRIED = {
    "backprop": tp.algorithms.Backprop,
    "ldrl": tp.algorithms.LDRL,
    "ldrl-correlation": lambda net, **k: tp.algorithms.LDRL(net, solver="correlation", **k),
    "ldrl-coupled": lambda net, **k: tp.algorithms.LDRL(net, solver="coupled", **k),
    "ldrl-fixed": lambda net, **k: tp.algorithms.LDRL(net, solver="fixed", **k),
    "feedback_alignment": tp.algorithms.FeedbackAlignment,
    "direct_feedback_alignment": tp.algorithms.DirectFeedbackAlignment,
    "kolen_pollack": tp.algorithms.KolenPollack,
    "weight_mirror": tp.algorithms.WeightMirror,
    "sign_symmetry": tp.algorithms.SignSymmetry,
    "brSF": lambda net, **k: tp.algorithms.SignSymmetry(net, variant="brSF", **k),
}
TOPOLOGIES = {
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ELU(),
        nn.Linear(8, models.CLASSES),
    ),
    "residual": lambda: models.ResNet(models.BasicBlock),
    "transformer": lambda: models.ViT(True),
}
PLACES = [(rule, net) for rule in CARRIED for net in TOPOLOGIES]
"""Every rule and solver of autograd, on a chain, a normalised residual network, a transformer."""


def carried(rule, net, dtype=torch.float32):
    """(model ↦ algorithm, model without dropout, x, y) of one of PLACES."""
    torch.manual_seed(0)
    model = TOPOLOGIES[net]().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return (
        CARRIED[rule],
        model,
        torch.randn(8, 3, 8, 8, dtype=dtype),
        torch.arange(8) % models.CLASSES,
    )
