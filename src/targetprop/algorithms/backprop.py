"""Backpropagation: the reference."""

from __future__ import annotations

from torch import Tensor

from targetprop.algorithms.base import Algorithm, Report


class Backprop(Algorithm):
    """∂L/∂θ of the batch-mean loss by autograd (Rumelhart et al. 1986).

    Example:
        >>> algo = Backprop(net)
        >>> report = algo.backward(x, y)

    """

    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Add the gradient of the batch-mean loss to ``.grad`` of θ."""
        logits = self.net(x)
        loss = self.loss(logits, y)
        loss.backward()
        return Report(loss.detach(), logits.detach())
