"""How far one array is from another."""

from __future__ import annotations

import torch
from torch import Tensor


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle of two flattened arrays, degrees, precise if small (Kahan: 2·atan2); 90 if one is 0.

    Example:
        >>> tp.analysis.angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor(45.)
    """
    a, b = a.flatten(), b.flatten()
    na, nb = a.norm(), b.norm()
    radians = 2 * torch.atan2((a * nb - b * na).norm(), (a * nb + b * na).norm())
    return torch.where((na > 0) & (nb > 0), torch.rad2deg(radians), torch.full_like(radians, 90.0))


def distance(reference: Tensor, other: Tensor) -> Tensor:
    """‖reference − other‖/‖reference‖; infinite, or nan where both are 0, for a reference of 0."""
    return (reference - other).norm() / reference.norm()


def size(reference: Tensor, other: Tensor) -> float:
    """‖other‖/‖reference‖."""
    return (other.norm() / reference.norm()).item()
