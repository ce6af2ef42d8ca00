"""ResNet-20 in its CIFAR form."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """A convolution without bias and its batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """relu(branch(x) + shortcut(x)), shortcut 1×1 if the shape changes (He et al.'s option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        """Two 3×3 convolutions, the first with ``stride``."""
        super().__init__()
        self.first, self.second = (
            convolution(inputs, outputs, 3, stride),
            convolution(outputs, outputs, 3, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of basic blocks, global average pooling, a linear layer (He et al. 2016)."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int], blocks: int):
        """One stage a width, of ``blocks`` blocks; each stage but the first halves the image."""
        super().__init__()
        self.stem = convolution(channels, widths[0], 3, 1)
        body, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                body.append(BasicBlock(inputs, width, 2 if stage and not block else 1))
                inputs = width
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


def resnet20(
    in_shape: Sequence[int], classes: int, widths: Sequence[int] = (16, 32, 64), blocks: int = 3
) -> ResNet:
    """He et al.'s (2016) 20-layer CIFAR-10 network, option B shortcuts; 6·``blocks`` + 2 layers.

    Example:
        >>> tp.models.resnet20((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return ResNet(in_shape[0], classes, widths, blocks)
