"""Why an attached module cannot run this pass: one sentence, with the module's name."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.nn.utils import stateless

from targetprop.telling import warn

FUNCTIONAL = stateless._functional_call.__code__
"""What ``torch.func.functional_call`` runs a model in."""


def label(module: Any) -> str:
    """The module by its name in the model, where the model's handle tells it, and its class."""
    handle = module._feedback.handle
    names = [name for name, own in handle.modules.items() if own is module] if handle else []
    return f"'{names[0]}' ({module._get_name()})" if any(names) else module._get_name()


def called_with_weights() -> bool:
    """Whether ``torch.func.functional_call`` runs the model."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not FUNCTIONAL:
        frame = frame.f_back
    return frame is not None


def note_foreign(module: Any, weight: Tensor) -> bool:
    """Say that a weight from elsewhere stands in a module's place; returns whether one does.

    ``torch.func.functional_call`` with the model's own weights, for gradients of each sample say,
    is not meant.
    """
    names = [name for name, own in module._parameters.items() if own is weight]
    link = module._feedback
    if not names or link.handle is None:
        return False
    while is_functorch_wrapped_tensor(weight):
        weight = get_unwrapped(weight)
    place = weight.untyped_storage().data_ptr()
    for site in link.handle.sites:
        if site.module is module and site.layout.weight == names[0]:
            own = link.handle.learning.last_theta(site)
            if own is None or own.untyped_storage().data_ptr() == place:
                return False
    warn(
        f"the weight of {label(module)} is another than the model's own in this pass (by "
        "torch.func.functional_call, say), and its signal travels by the ω of the model's own, or "
        "by one that you gave and must teach; use feedback.exact() there, or rule='symmetric'."
    )
    return True


def tell_copy() -> None:
    """Say that a copy was given weights to which nobody will teach its ω."""
    warn(
        "a copy of an attached model was loaded with weights without ω, so its signal travels by "
        "the ω of the weights before; give it a handle of its own by targetprop.attach(copy)."
    )


def omega_of(module: Any, name: str) -> Tensor:
    """The ω called ``name``.

    Raises:
        RuntimeError: ``module`` was given none.
    """
    omega = getattr(module, name, None)
    if omega is None:
        raise RuntimeError(
            f"{label(module)} has no feedback weights, because its input needed no gradient "
            "in the example inputs, but now it does; attach again with inputs like these, or "
            "without any."
        )
    return omega


def refuse_reshaped(name: str, theta: Tensor, omega: Tensor) -> None:
    """Refuse a θ that is shaped otherwise than the ω it came with.

    Raises:
        RuntimeError: it is; ``name`` says of which module.
    """
    if theta.shape != omega.shape:
        raise RuntimeError(
            f"the weight of {name} is {tuple(theta.shape)} now, but its feedback weights are "
            f"{tuple(omega.shape)}; call detach() of the model's feedback and attach again."
        )


def refuse_nested(module: Any, *tensors: Tensor) -> None:
    """Refuse nested tensors where a map does not serve them.

    Raises:
        TypeError: there is one.
    """
    if any(x.is_nested for x in tensors):
        raise TypeError(
            f"{label(module)} with feedback takes padded tensors, got nested ones; pad them to "
            "one length."
        )


def refuse_sent(where: str, rule: Any, sent: Any, weight: Tensor) -> None:
    """Refuse what a rule of the user's sends.

    Raises:
        ValueError: always.
    """
    got = f"shape {tuple(sent.shape)}" if isinstance(sent, Tensor) else type(sent).__name__
    raise ValueError(
        f"sent() of the rule {type(rule).__name__} gave {got} for {where}; expected a tensor like "
        f"θ, {tuple(weight.shape)}."
    )
