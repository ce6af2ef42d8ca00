"""Backpropagation: the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from targetprop.algorithms.base import Algorithm, Loss, Report
from targetprop.pairing import Network


class Backprop(Algorithm):
    """∂L/∂θ of the batch-mean loss by autograd (Rumelhart et al. 1986).

    Example:
        >>> algo = Backprop(net)
        >>> report = algo.backward(x, y)

    """

    rule = "backprop"

    def __init__(self, net: Network, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0):
        """As for every algorithm."""
        super().__init__(net, loss, label_smoothing)
        self._forward: Callable[[Tensor], Tensor] = net

    def compile(self, mode: str | None = None) -> None:
        """Let torch.compile fuse both passes."""
        self._forward = torch.compile(self.net, mode=mode)  # type: ignore[assignment]

    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Add the gradient of the batch-mean loss to ``.grad`` of θ."""
        self.check(x)
        logits = self._forward(x)
        parameters = [p for p in self.net.forward_parameters() if p.requires_grad]
        loss = self.carry(self.loss(logits, y), parameters)
        return Report(loss, logits.detach())
