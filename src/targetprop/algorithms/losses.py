"""The loss that an algorithm minimises, and the error signal it sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, y) ↦ the batch mean of a loss, a scalar differentiable in the logits."""


def loss_function(loss: str | Loss, label_smoothing: float = 0.0) -> Loss:
    """The loss called ``loss``, or ``loss`` itself.

    Raises:
        ValueError: an unknown name; label smoothing outside [0, 1) or without cross-entropy.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label smoothing {label_smoothing} is outside [0, 1).")
    if loss == "cross_entropy":
        return partial(F.cross_entropy, label_smoothing=label_smoothing)
    if label_smoothing:
        raise ValueError(f"label smoothing {label_smoothing} needs the loss 'cross_entropy'.")
    if loss == "mse":
        return mean_squared_error
    if callable(loss):
        return loss
    raise ValueError(
        f"unknown loss '{loss}'; choose 'cross_entropy', 'mse' or give a function of (logits, y)."
    )


def mean_squared_error(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of (logits − y)² over batch and outputs; integer y count as one-hot."""
    return F.mse_loss(
        logits, y if y.is_floating_point() else F.one_hot(y, logits.shape[-1]).to(logits)
    )


def output_error(loss: Loss, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch-mean loss and ∂ℓ/∂sᴺ of *per-sample* losses ℓ, B times their mean's gradient."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, y)
    # Parameters of the loss itself, which the layers do not see, get their gradient too.
    value.backward()
    gradient: Any = leaf.grad
    return value.detach(), gradient * len(logits)


def refuse_sum(loss: Loss, logits: Tensor, y: Tensor) -> None:
    """Refuse a loss that is no batch mean: β would be as many times too large as there are samples.

    Raises:
        ValueError: the loss of the batch taken twice is twice that of the batch.
    """
    try:
        with torch.no_grad():
            once, twice = (float(loss(torch.cat([logits] * n), torch.cat([y] * n))) for n in (1, 2))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return  # a loss of a fixed number of samples cannot be asked
    if abs(twice - 2 * once) < 1e-3 * abs(once) and abs(once) > 0:
        raise ValueError(
            f"the loss of a batch taken twice is {twice:.4g}, twice that of the batch, {once:.4g}: "
            "it is a sum, and targets need the batch mean; use reduction='mean'."
        )


def check_beta(beta: float) -> float:
    """β.

    Raises:
        ValueError: it is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta} is not positive; targets need a nudge, such as beta=0.1.")
    return beta
