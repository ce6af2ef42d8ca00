"""The networks of the paper and a plain perceptron, paired with feedback, for any input shape.

All share one signature: ``name(in_shape, classes, channels=..., activation="elu", bias=True, feedback="matched")``.
"""

from __future__ import annotations

from collections.abc import Sequence

from targetprop import plain
from targetprop.activations import Feedback
from targetprop.pairing import Network, pair

Shape = Sequence[int]


def mlp(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (512, 512),
    activation: str = "elu",
    bias: bool = True,
    feedback: Feedback = "matched",
) -> Network:
    """A perceptron with hidden layers of the widths ``channels``; inputs of any shape are flattened."""
    return pair(plain.mlp(in_shape, classes, channels, activation, bias), feedback)


def lenet(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (32, 64, 512),
    activation: str = "elu",
    bias: bool = True,
    feedback: Feedback = "matched",
) -> Network:
    """LeNet as Ernoult et al. (2022): two blocks [conv 5×5, ρ, max pool 3×3 stride 2], then two linear layers.

    ``channels`` are the widths of the two convolutions and of the hidden linear layer.
    """
    return pair(plain.lenet(in_shape, classes, channels, activation, bias), feedback)


def simple_vgg(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (128, 128, 256, 256, 512),
    activation: str = "elu",
    bias: bool = True,
    feedback: Feedback = "matched",
) -> Network:
    """SimpleVGG of Ernoult et al. (2022): a block [conv 3×3, ρ, max pool 2×2] per entry of ``channels``, then a linear layer.

    A block pools only where both sides of its input are at least 2, so that small images pass.
    """
    return pair(plain.simple_vgg(in_shape, classes, channels, activation, bias), feedback)


def chain(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (64,) * 8,
    activation: str = "elu",
    bias: bool = True,
    feedback: Feedback = "matched",
) -> Network:
    """A chain of 3×3 convolutions of stride 1, the first of stride 2; then the mean over positions and a linear layer."""
    return pair(plain.chain(in_shape, classes, channels, activation, bias), feedback)


def resnet18(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (64, 128, 256, 512),
    activation: str = "relu",
    bias: bool = True,
    batch_norm: bool = False,
    feedback: Feedback = "matched",
) -> Network:
    """ResNet-18 in its CIFAR form, batch normalisation if asked for: 3×3 stem, 2 basic blocks a stage (He et al. 2016)."""
    return pair(plain.resnet18(in_shape, classes, channels, activation, bias, batch_norm), feedback)


def resnet34(
    in_shape: Shape,
    classes: int,
    channels: Sequence[int] = (64, 128, 256, 512),
    activation: str = "relu",
    bias: bool = True,
    batch_norm: bool = False,
    feedback: Feedback = "matched",
) -> Network:
    """ResNet-34 in its CIFAR form, batch normalisation if asked for: 3, 4, 6, 3 basic blocks a stage (He et al. 2016)."""
    return pair(plain.resnet34(in_shape, classes, channels, activation, bias, batch_norm), feedback)


NETWORKS = {
    "mlp": mlp,
    "lenet": lenet,
    "simple_vgg": simple_vgg,
    "chain": chain,
    "resnet18": resnet18,
    "resnet34": resnet34,
}
