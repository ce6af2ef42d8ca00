"""What a measurement of an attached model refuses, since it would measure nothing."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from targetprop.attach import Feedback


def refuse_foreign(model: nn.Module, feedback: Feedback) -> None:
    """Refuse a handle through which nothing of the model goes: every angle would be 0.

    Raises:
        ValueError: it is another model's, or was detached.
    """
    own = {id(module) for module in model.modules()}
    if not any(id(module) in own for module in feedback.modules.values()):
        why = "is another model's" if feedback.modules else "was detached"
        raise ValueError(
            f"this feedback {why}, so no part of {type(model).__name__} sends signals through it; "
            "give the model together with the feedback that tp.attach(model) returned."
        )


def arguments_of(loss_fn: Any, model: nn.Module) -> tuple[nn.Module, ...]:
    """What ``loss_fn`` is called with: the model, or nothing.

    Raises:
        TypeError: it takes neither.
    """
    for arguments in ((model,), ()):
        if takes(loss_fn, arguments):
            return arguments
    shown = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    raise TypeError(
        f"for an attached model give loss_fn: lambda m: loss(m(x), y), got {shown}, which cannot "
        "be called with the model alone."
    )


def takes(function: Any, arguments: tuple) -> bool:
    """Whether a function can be called with ``arguments``."""
    if not callable(function):
        return False
    try:
        inspect.signature(getattr(function, "forward", function)).bind(*arguments)
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)  # it does not tell
    return True
