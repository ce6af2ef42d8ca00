"""Notices an optimizer that was given θ but not the ω that should follow it."""

from __future__ import annotations

import warnings

from targetprop.pairing import Network


class TrackingWatch:
    """Compares how often θ and ω were written between two calls of ``backward``.

    Tracking (Kolen–Pollack; Akrout et al. 2019) needs the optimizer to move both by the same rule.
    """

    def __init__(self, net: Network):
        """Watch the last layer with feedback."""
        watched = [layer for layer in net.layers if layer.feedback_map is not None]
        self._pair = (watched[-1].theta, watched[-1].omega) if watched else ()
        self._seen: list[int] = []

    def record(self) -> None:
        """Remember the present state, at the end of ``backward``."""
        self._seen = [weight._version for weight in self._pair]

    def check(self) -> None:
        """Warn once if θ was written since ``record`` and ω was not."""
        moved = [weight._version != seen for weight, seen in zip(self._pair, self._seen, strict=False)]
        if moved == [True, False]:
            self._pair = ()
            warnings.warn(
                "tracking is on but the optimizer moves the forward weights only, so the feedback weights fall behind "
                "between probes; give it net.parameters(), or use a solver with tracking=False.",
                stacklevel=5,
            )
