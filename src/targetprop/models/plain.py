"""The paper's networks and a perceptron as ordinary ``nn.Sequential`` modules, before pairing.

All share one signature: ``name(in_shape, classes, channels=..., activation="elu", bias=True)``.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

Shape = Sequence[int]

_MODULES: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class Sum(nn.Module):
    """branch(x) + shortcut(x), an ``nn.Sequential``'s residual block; no shortcut is the identity.

    Both arms start with a linear map; what follows (activation, pooling) acts on the sum.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        """Join the two arms."""
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Sequential() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """branch(x) + shortcut(x)."""
        return self.branch(x) + self.shortcut(x)


def activation_module(name: str) -> nn.Module:
    """The module of the activation called ``name``.

    Raises:
        ValueError: for an unknown name; the sentence gives the nearest one.
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(_MODULES)}."
        raise ValueError(f"unknown activation '{name}'; {hint}")
    return _MODULES[name]()


def image_shape(in_shape: Shape) -> tuple[int, int, int]:
    """(channels, height, width), checked."""
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise ValueError(
            f"in_shape {tuple(in_shape)} is not an image; give (channels, height, width), all "
            "positive."
        )
    return in_shape[0], in_shape[1], in_shape[2]


def mlp(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (512, 512),
    activation: str = "elu",
    bias: bool = True,
) -> nn.Sequential:
    """A perceptron with hidden layers of widths ``channels``; inputs of any shape are flattened."""
    widths = [math.prod(in_shape), *channels]
    modules: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        modules += [nn.Linear(a, b, bias), activation_module(activation)]
    return nn.Sequential(*modules, nn.Linear(widths[-1], classes, bias))


def lenet(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (32, 64, 512),
    activation: str = "elu",
    bias: bool = True,
) -> nn.Sequential:
    """LeNet of Ernoult et al. (2022): 2 × [conv 5×5, ρ, max pool 3×3 stride 2], 2 linear layers.

    ``channels`` are the widths of the two convolutions and of the hidden linear layer.
    """
    c, height, width = image_shape(in_shape)
    if len(channels) != 3:
        raise ValueError(
            "lenet takes 3 channels (two convolutions, one hidden linear layer), got "
            f"{tuple(channels)}."
        )
    modules: list[nn.Module] = []
    for out in channels[:2]:
        modules += [
            nn.Conv2d(c, out, 5, padding=2, bias=bias),
            activation_module(activation),
            nn.MaxPool2d(3, 2, 1),
        ]
        c, height, width = out, (height + 1) // 2, (width + 1) // 2
    hidden = nn.Linear(c * height * width, channels[2], bias)
    modules += [
        nn.Flatten(),
        hidden,
        activation_module(activation),
        nn.Linear(channels[2], classes, bias),
    ]
    return nn.Sequential(*modules)


def simple_vgg(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (128, 128, 256, 256, 512),
    activation: str = "elu",
    bias: bool = True,
) -> nn.Sequential:
    """SimpleVGG of Ernoult et al. (2022): blocks [conv 3×3, ρ, max pool 2×2], then a linear layer.

    One block per entry of ``channels``; it pools only where both sides of its input are at least 2,
    so that small images pass.
    """
    c, height, width = image_shape(in_shape)
    modules: list[nn.Module] = []
    for out in channels:
        modules += [nn.Conv2d(c, out, 3, padding=1, bias=bias), activation_module(activation)]
        if min(height, width) >= 2:
            modules.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        c = out
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(c * height * width, classes, bias))


def chain(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (64,) * 8,
    activation: str = "elu",
    bias: bool = True,
) -> nn.Sequential:
    """3×3 convolutions of stride 1 (the first 2), the mean over positions, a linear layer."""
    c, _, _ = image_shape(in_shape)
    modules: list[nn.Module] = []
    for i, out in enumerate(channels):
        modules += [
            nn.Conv2d(c, out, 3, 1 if i else 2, 1, bias=bias),
            activation_module(activation),
        ]
        c = out
    return nn.Sequential(
        *modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes, bias)
    )


def resnet18(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (64, 128, 256, 512),
    activation: str = "relu",
    bias: bool = True,
    batch_norm: bool = False,
) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) for CIFAR: 3×3 stem, 2 basic blocks a stage; norms if asked."""
    return _resnet(in_shape, classes, channels, (2, 2, 2, 2), activation, bias, batch_norm)


def resnet34(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (64, 128, 256, 512),
    activation: str = "relu",
    bias: bool = True,
    batch_norm: bool = False,
) -> nn.Sequential:
    """ResNet-34 (He et al. 2016) for CIFAR: 3, 4, 6, 3 basic blocks a stage; norms if asked."""
    return _resnet(in_shape, classes, channels, (3, 4, 6, 3), activation, bias, batch_norm)


def _resnet(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int],
    depths: Sequence[int],
    activation: str,
    bias: bool,
    batch_norm: bool,
) -> nn.Sequential:
    if len(channels) != len(depths):
        raise ValueError(f"a ResNet has {len(depths)} stages, got the channels {tuple(channels)}.")

    def convolution(c: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        made = nn.Conv2d(c, out, kernel, stride, kernel // 2, bias=bias and not batch_norm)
        return [made, nn.BatchNorm2d(out)] if batch_norm else [made]

    c = channels[0]
    modules = [*convolution(image_shape(in_shape)[0], c, 3), activation_module(activation)]
    for stage, (out, depth) in enumerate(zip(channels, depths, strict=True)):
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            branch = [
                *convolution(c, out, 3, stride),
                activation_module(activation),
                *convolution(out, out, 3),
            ]
            shortcut = (
                None if stride == 1 and c == out else nn.Sequential(*convolution(c, out, 1, stride))
            )
            modules += [Sum(nn.Sequential(*branch), shortcut), activation_module(activation)]
            c = out
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes, bias)]
    return nn.Sequential(*modules)


NETWORKS = {
    "mlp": mlp,
    "lenet": lenet,
    "simple_vgg": simple_vgg,
    "chain": chain,
    "resnet18": resnet18,
    "resnet34": resnet34,
}
