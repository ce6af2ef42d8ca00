"""What explicit passes cannot run, refused with a sentence that names it and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from targetprop.laboratory.normalisation import BatchNorm
from targetprop.laboratory.stages import Step


class PairingError(TypeError):
    """A module that has no feedback partner."""


def refuse_reused(module: nn.Module) -> None:
    """A module with weights may stand in the network once.

    Raises:
        PairingError: one stands there twice.
    """
    seen: dict[int, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if next(part.parameters(recurse=False), None) is None:
            continue
        if id(part) in seen:
            raise PairingError(
                f"layers '{seen[id(part)]}' and '{name}' are one module ({type(part).__name__}), "
                "whose shared weight explicit passes would give two feedbacks; attach the "
                "nn.Sequential instead (targetprop.attach), which shares one."
            )
        seen[id(part)] = name


def hooked(module: nn.Module) -> str | None:
    """What a module does besides its forward: hooks, or a weight that something computes."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for kind in kinds:
        for hook in getattr(module, kind).values():
            if getattr(hook, "harmless", False):  # of attach: it looks and changes nothing
                continue
            return f"the hook {getattr(hook, '__name__', type(hook).__name__)}"
    if hasattr(module, "parametrizations"):
        return "a parametrised weight"
    return None


def refuse_hooked(name: str, module: nn.Module) -> None:
    """Raise the error of :meth:`Network.refuse_hooks` for one module."""
    found = hooked(module)
    if found is not None:
        raise PairingError(
            f"layer '{name}' ({type(module).__name__}) carries {found}, which explicit passes "
            "never run; attach the module instead (targetprop.attach), which does, or take it away."
        )


def refuse_norm(steps: Sequence[Step], where: str) -> None:
    """Batch normalisation has its place behind a linear map only.

    Raises:
        PairingError: it stands among ``steps``.
    """
    if any(isinstance(step, BatchNorm) for step in steps):
        raise PairingError(
            f"{where} is batch normalised; put the normalisation behind a linear map, within its "
            "branch."
        )
