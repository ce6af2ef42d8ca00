"""Warnings that point at the line of the user's program which caused them."""

from __future__ import annotations

import sys
import warnings

OURS = ("targetprop", "torch", "contextlib")
"""Packages whose frames between that line and the warning are nothing a user has written."""


def warn(text: str) -> None:
    """A ``UserWarning`` at the innermost line that is neither this package's nor torch's."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level if frame is not None else 2)
