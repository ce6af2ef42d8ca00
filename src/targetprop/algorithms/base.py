"""What the algorithms share: the report, the loss and its error signal, the explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from targetprop.feedback import FeedbackReport
from targetprop.pairing import Network

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, y) ↦ the batch mean of a loss, a scalar differentiable in the logits."""


@dataclass(frozen=True)
class Report:
    """What one call of ``backward`` saw.

    Attributes:
        loss: batch mean of the loss, a scalar without a graph.
        logits: sᴺ of the batch, without a graph.
        feedback: per layer name, what its solver did; empty for algorithms that train no feedback.

    """

    loss: Tensor
    logits: Tensor
    feedback: dict[str, FeedbackReport] = field(default_factory=dict)


class Algorithm(ABC):
    """A credit assignment rule: ``backward(x, y)`` stands where ``loss.backward()`` stood.

    Attributes:
        net: the network it trains.
        loss: the loss of (logits, y), a batch mean.

    """

    def __init__(self, net: Network, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0):
        """Bind the network and the loss.

        Args:
            net: the network.
            loss: ``"cross_entropy"``, ``"mse"`` (against one-hot labels, or float targets shaped like the logits), or any
                function of (logits, y) that returns a batch mean.
            label_smoothing: of the cross-entropy.

        """
        self.net = net
        self.loss = loss_function(loss, label_smoothing)

    @abstractmethod
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Add to ``.grad`` an estimate of the gradient of the batch-mean loss, after training the feedback path, if any."""

    @abstractmethod
    def compile(self, mode: str | None = None) -> None:
        """Run the passes through torch.compile from now on; ``mode`` is torch's, one without CUDA graphs."""

    def state_dict(self) -> dict[str, Any]:
        """All that the algorithm remembers between calls beside the network's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}.")


def loss_function(loss: str | Loss, label_smoothing: float = 0.0) -> Loss:
    """The loss called ``loss``, or ``loss`` itself.

    Raises:
        ValueError: an unknown name, or label smoothing outside [0, 1) or of another loss than cross-entropy.

    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label smoothing {label_smoothing} is outside [0, 1).")
    if loss == "cross_entropy":
        return lambda logits, y: F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    if label_smoothing:
        raise ValueError(f"label smoothing {label_smoothing} needs the loss 'cross_entropy'.")
    if loss == "mse":
        return mean_squared_error
    if callable(loss):
        return loss
    raise ValueError(f"unknown loss '{loss}'; choose 'cross_entropy', 'mse' or give a function of (logits, y).")


def mean_squared_error(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of (logits − y)² over batch and outputs; integer y count as one-hot."""
    return F.mse_loss(logits, y if y.is_floating_point() else F.one_hot(y, logits.shape[-1]).to(logits))


def output_error(loss: Loss, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch-mean loss and ∂ℓ/∂sᴺ of the *per-sample* losses ℓ, B times the gradient of their mean."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, y)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient * len(logits)


def generator_on(device: torch.device, seed: int) -> Generator:
    """A noise generator on ``device``."""
    return torch.Generator(device).manual_seed(seed)
