"""A small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """Patches, positions, pre-norm layers, mean over patches, head (Dosovitskiy et al. 2021)."""

    def __init__(
        self,
        in_shape: Sequence[int],
        classes: int,
        patch: int,
        layers: int,
        width: int,
        heads: int,
        dropout: float,
    ):
        """See :func:`vit`."""
        super().__init__()
        channels, height, breadth = in_shape
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(
            torch.randn(1, (height // patch) * (breadth // patch), width) * 0.02
        )
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, classes)
        for parameter in self.encoder.parameters():  # copies of one layer start alike
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        tokens = self.patches(x).flatten(2).mT + self.positions
        return self.head(self.encoder(tokens).mean(1))


def vit(
    in_shape: Sequence[int], classes: int, patch: int = 4, layers: int = 6, width: int = 128,
    heads: int = 4, dropout: float = 0.0,
) -> ViT:  # fmt: skip
    """A vision transformer for small images: patches of 4, 6 layers, width 128.

    Args:
        in_shape: (C, H, W).
        classes: logits.
        patch: side of a patch, which divides both sides of the image.
        layers: of the encoder.
        width: of tokens.
        heads: of attention.
        dropout: in every layer.

    Raises:
        ValueError: patches do not tile the image.

    Example:
        >>> vit((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if in_shape[1] % patch or in_shape[2] % patch:
        raise ValueError(
            f"patches of {patch} do not tile images of {in_shape[1]}×{in_shape[2]}; give another "
            "patch."
        )
    return ViT(in_shape, classes, patch, layers, width, heads, dropout)
