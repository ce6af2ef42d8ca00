"""Backpropagation: the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from targetprop.algorithms.attached import AttachedAlgorithm
from targetprop.algorithms.losses import Loss
from targetprop.properties import Row


class Backprop(AttachedAlgorithm):
    """∂L/∂θ of the batch mean by autograd (Rumelhart et al. 1986), of any module, attached or not.

    Example:
        >>> algo = tp.algorithms.Backprop(torch.nn.Linear(8, 4))
        >>> algo.backward(torch.randn(32, 8), torch.randint(4, (32,))).loss.shape
        torch.Size([])
    """

    rows = (Row("Backprop", "θᵀ", local="no", transport="yes", symmetric="yes"),)

    def __init__(
        self, net: nn.Module, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0,
        example_inputs: Sequence[Any] = (),
    ):  # fmt: skip
        """As for every algorithm; there is no feedback to set, and example inputs tell nothing."""
        super().__init__(net, loss=loss, label_smoothing=label_smoothing)
