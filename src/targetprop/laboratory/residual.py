"""Residual blocks, and the way of a batch up and down through a chain of layers and blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from targetprop.laboratory.activations import Feedback
from targetprop.laboratory.layers import Carry, Layer, Learn, Trace
from targetprop.laboratory.stages import Stage, Step


@dataclass(frozen=True)
class ResidualTrace:
    """A batch's pass through a residual block: its layers' traces and what its own stage saved."""

    branch: list[Trace]
    shortcut: list[Trace]
    output: Tensor
    saved: tuple


Arms = tuple[list[Trace], list[Trace]]
"""The traces of a block's branch and of its shortcut."""


class Residual(nn.Module):
    """s = S(branch(x) + shortcut(x)); an empty shortcut is the identity.

    Where the forward pass copies x, the differences that come back are summed. Every linear map
    inside is a layer with its own feedback weights and its own local loss.
    """

    def __init__(
        self,
        branch: Sequence[Layer],
        shortcut: Sequence[Layer] = (),
        steps: Sequence[Step] = (),
        kind: Feedback = "matched",
    ):
        """Join ``branch`` and ``shortcut``; ``steps`` act on their sum."""
        super().__init__()
        self.branch: Any = nn.ModuleList(branch)
        self.shortcut: Any = nn.ModuleList(shortcut)
        self.stage = Stage(tuple(steps), kind)

    def forward(self, x: Tensor) -> Tensor:
        """S(branch(x) + shortcut(x)), differentiable."""
        a = b = x
        for layer in self.branch:
            a = layer(a)
        for layer in self.shortcut:
            b = layer(b)
        return self.stage.forward(a + b)[0]

    def trace(self, x: Tensor) -> ResidualTrace:
        """The same with traces, which do not keep the two terms of the sum."""
        branch, a = trace_chain(self.branch, x)
        shortcut, b = trace_chain(self.shortcut, x)
        s, saved = self.stage.forward(a + b)
        return ResidualTrace(
            without_term(self.branch, branch), without_term(self.shortcut, shortcut), s, saved
        )

    def enter(self, trace: ResidualTrace, d: Tensor, e: Tensor) -> tuple[Arms, Tensor, Tensor]:
        """Past the sum's stage: R(s + d) − R(s), and S′ᵀe; the traces of the arms are left."""
        difference = self.stage.difference(trace.saved, trace.output, d)
        return (trace.branch, trace.shortcut), difference, self.stage.vjp(trace.saved, e)

    def descend(
        self, arms: Arms, d: Tensor, e: Tensor, carry: Carry, learn: Learn
    ) -> tuple[list[Any], Any]:
        """What every layer learned, and the sum of the differences both arms carry to the input."""
        learned, a = descend(list(self.branch), arms[0], d, e, carry, learn)
        others, b = descend(list(self.shortcut), arms[1], d, e, carry, learn)
        # a comes fresh from the branch's first layer; b may be d itself
        return learned + others, None if a is None or b is None else a.add_(b)

    def leaves(self) -> Iterator[Layer]:
        """The layers of the branch, then of the shortcut."""
        yield from self.branch
        yield from self.shortcut

    def leaf_traces(self, trace: ResidualTrace) -> Iterator[tuple[Layer, Trace]]:
        """The layers with their traces, in the order of ``leaves``."""
        return zip(self.leaves(), trace.branch + trace.shortcut, strict=True)


def without_term(layers: Any, traces: list[Trace]) -> list[Trace]:
    """An arm's traces without its output, which only the sum reads, unless a step keeps it."""
    if not traces or layers[-1].stage.steps:
        return traces
    return [*traces[:-1], replace(traces[-1], kept=None)]


def trace_chain(blocks: Iterable[Any], x: Tensor) -> tuple[list[Any], Tensor]:
    """Run x through ``blocks``; their traces and the output."""
    traces = []
    for block in blocks:
        traces.append(block.trace(x))
        x = traces[-1].output
    return traces, x


def descend(
    blocks: Sequence[Any], traces: list[Any], d: Tensor, e: Tensor, carry: Carry, learn: Learn
) -> tuple[list[Any], Tensor | None]:
    """Take a difference at the output of ``blocks`` down to their input.

    Args:
        blocks: layers and residual blocks.
        traces: theirs; each is taken off the end in its turn, so its arrays are free once used.
        d: the difference to carry.
        e: what the last layer learns from: d itself, but before a sum S′ᵀd of the sum's stage,
            which carries R(s + d) − R(s).
        carry: how a layer carries a difference to its input.
        learn: what a layer learns from one.

    Returns:
        what every layer learned, in order; the difference at the input, None if not needed.
    """
    learned: list[Any] = []
    for block in reversed(blocks):
        # What came from above is free before the block begins.
        trace, d, e = block.enter(traces.pop(), d, e)
        found, d = block.descend(trace, d, e, carry, learn)
        e = d
        learned = found + learned
    return learned, d
