"""A stage: what follows a linear map (activation, pooling, flattening) and the way back through it.

Write S for the stage at pre-activation c and S′ for its Jacobian with the pool winners of the clean
pass frozen. Learning needs five things of it:

* ``forward``: s = S(c), and what was *saved* of this pass (winners, outputs, shapes), explicitly;
* ``jvp`` and ``vjp``: S′v and S′ᵀe;
* ``lift``: R(t), the feedback path from the layer's output to the feedback map, G(t) = A_ωᵀ R(t);
* ``difference``: R(s + d) − R(s), where the matched kind needs neither R(s) nor a second pass.

Matched, R has the Jacobian S′ᵀ at s; mirror, R is the paper's (PAPER: unpool, then the same
activation again).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from targetprop.laboratory.activations import Activation, Feedback
from targetprop.laboratory.normalisation import BatchNorm, ParameterGradients
from targetprop.laboratory.pooling import AvgPool, MaxPool

T = TypeVar("T")


class Step(Protocol):
    """One step of a stage; ``saved`` is what its ``forward`` returned beside the output."""

    def forward(self, x: Tensor, /) -> tuple[Tensor, Any]:
        """The step's output and what is saved of the pass."""
        ...

    def jvp(self, saved: Any, v: Tensor, /) -> Tensor:
        """Jacobian times v."""
        ...

    def vjp(self, saved: Any, e: Tensor, /) -> Tensor:
        """Transposed Jacobian times e."""
        ...

    def difference(self, saved: Any, d: Tensor, /) -> Tensor:
        """The matched feedback of s + d less that of s."""
        ...

    def lift(self, saved: Any, t: Tensor, kind: Feedback, /) -> Tensor:
        """The feedback of t."""
        ...


def moved_up(items: Sequence[T], swaps: Callable[[T, T], bool]) -> tuple[T, ...]:
    """``items`` with each moved before its predecessor p for as long as ``swaps(p, item)``."""
    ordered = list(items)
    for i in range(1, len(ordered)):
        j = i
        while j > 0 and swaps(ordered[j - 1], ordered[j]):
            ordered[j - 1], ordered[j] = ordered[j], ordered[j - 1]
            j -= 1
    return tuple(ordered)


def pool_first(steps: tuple[Step, ...], kind: Feedback) -> tuple[Step, ...]:
    """Move max pooling before monotone activations: the same function on a fraction of the units.

    Mirror feedback activates the unpooled array; the other way round is the same if ρ(0) = 0.
    """

    def swaps(before: Step, step: Step) -> bool:
        if not (isinstance(step, MaxPool) and isinstance(before, Activation)):
            return False
        return before.monotone and (kind == "matched" or not before.off_zero)

    return moved_up(steps, swaps)


def lift_order(steps: tuple[Step, ...], kind: Feedback) -> tuple[int, ...]:
    """The order in which the feedback path runs through the steps: backwards.

    Mirror feedback activates before it unpools where that computes the same on a fraction of the
    units: replication commutes with any elementwise ρ, max-unpooling where ρ(0) = 0.
    """

    def swaps(i: int, j: int) -> bool:
        pool, step = steps[i], steps[j]
        if kind == "matched" or not isinstance(step, Activation):
            return False
        return isinstance(pool, AvgPool) or (isinstance(pool, MaxPool) and not step.off_zero)

    return moved_up(tuple(reversed(range(len(steps)))), swaps)


@dataclass(frozen=True)
class Stage:
    """A chain of steps with feedback of one kind; pools before it activates if that is the same."""

    steps: tuple[Step, ...]
    kind: Feedback = "matched"

    def __post_init__(self):
        """Choose the order of the steps."""
        if self.kind not in ("matched", "mirror"):
            raise ValueError(f"unknown feedback '{self.kind}'; choose 'matched' or 'mirror'.")
        object.__setattr__(self, "steps", pool_first(self.steps, self.kind))

    def forward(self, c: Tensor) -> tuple[Tensor, tuple]:
        """S(c), and what each step saved."""
        saved = []
        for step in self.steps:
            c, kept = step.forward(c)
            saved.append(kept)
        return c, tuple(saved)

    def jvp(self, saved: tuple, v: Tensor) -> Tensor:
        """S′ v."""
        for step, kept in zip(self.steps, saved, strict=True):
            v = step.jvp(kept, v)
        return v

    def vjp(self, saved: tuple, e: Tensor, learned: ParameterGradients | None = None) -> Tensor:
        """S′ᵀ e; gradients of ⟨e, S(c)⟩ on the steps' parameters go into ``learned``, if given."""
        for step, kept in zip(reversed(self.steps), reversed(saved), strict=True):
            if learned is not None and isinstance(step, BatchNorm):
                learned += step.gradients(kept, e)
            e = step.vjp(kept, e)
        return e

    def observe(self, saved: tuple) -> None:
        """Let batch normalisation take this pass into its running statistics."""
        for step, kept in zip(self.steps, saved, strict=True):
            if isinstance(step, BatchNorm):
                step.observe(kept)

    def lift(self, saved: tuple, t: Tensor) -> Tensor:
        """R(t)."""
        for i in lift_order(self.steps, self.kind):
            t = self.steps[i].lift(saved[i], t, self.kind)
        return t

    def difference(self, saved: tuple, s: Tensor | None, d: Tensor) -> Tensor:
        """R(s + d) − R(s); s may be None where no step follows the map."""
        if self.kind == "mirror":
            return self._mirror_difference(saved, s, d)
        for step, kept in zip(reversed(self.steps), reversed(saved), strict=True):
            d = step.difference(kept, d)
        return d

    def _mirror_difference(self, saved: tuple, s: Any, d: Tensor) -> Tensor:
        """That of mirror feedback, taken behind the last activation: the rest is linear."""
        order = lift_order(self.steps, self.kind)
        activations = [
            place for place, i in enumerate(order) if isinstance(self.steps[i], Activation)
        ]
        behind = activations[-1] + 1 if activations else 0
        if behind:
            clean, moved = s, s + d
            for i in order[:behind]:
                clean, moved = (self.steps[i].lift(saved[i], t, self.kind) for t in (clean, moved))
            d = moved.sub_(clean)
        for i in order[behind:]:
            d = self.steps[i].lift(saved[i], d, self.kind)
        return d
