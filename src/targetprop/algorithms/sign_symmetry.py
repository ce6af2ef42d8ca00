"""Feedback weights that share the forward ones' signs."""

from __future__ import annotations

from typing import Literal

from targetprop.algorithms.base import Algorithm, Loss, Report


class SignSymmetry(Algorithm):
    """Sign symmetry (Liao et al. 2016) on any module: B = |ω| ⊙ sign(θ); see ``targetprop.rules.SignSymmetry``."""

    rule = "sign_symmetry"

    def __init__(
        self, net, variant: Literal["uSF", "brSF", "frSF"] = "uSF", seed: int = 0, loss: str | Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ):  # fmt: skip
        """For a module that is not a network of ``targetprop.pair``, whose layers carry ω of their own.

        Raises:
            TypeError: it is one.

        """
        raise TypeError(
            "SignSymmetry takes any plain module, not a network of targetprop.pair; give it the nn.Sequential itself."
        )

    def backward(self, x, y) -> Report:
        """See :class:`~targetprop.algorithms.attached.Attached`, which every instance is."""
        raise NotImplementedError

    def compile(self, mode: str | None = None) -> None:
        """Likewise."""
        raise NotImplementedError
