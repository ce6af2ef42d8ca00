"""ω are kept from the reducer of DistributedDataParallel, which would wait for their gradients."""

from __future__ import annotations

from typing import Any

from torch import nn

from targetprop.maps import is_feedback

NAME = "_ddp_params_and_buffers_to_ignore"
"""The attribute of a model in which torch looks for names of parameters to leave alone."""


class Hidden:
    """The names that the model had hidden before, with those of ω beside them."""

    def __init__(self, model: nn.Module):
        """Hide the ω of ``model``, under all their names."""
        named = model.named_parameters(remove_duplicate=False)
        names = [name for name, _ in named if is_feedback(name)]
        self.model: Any = model
        self.before: list[str] | None = getattr(model, NAME, None)
        if found := [*(self.before or ()), *names]:
            setattr(model, NAME, found)

    def remove(self) -> None:
        """Hide what was hidden before."""
        if self.before is not None:
            setattr(self.model, NAME, self.before)
        elif hasattr(self.model, NAME):
            delattr(self.model, NAME)
