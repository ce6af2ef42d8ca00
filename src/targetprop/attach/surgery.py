"""What becomes of a model after ``attach``: leaves the meta device, is untied, gets new modules."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from targetprop.attach.coverage import NotCovered
from targetprop.attach.growth import fill
from targetprop.attach.kinds import kind_of
from targetprop.attach.link import AttachedModule, Link
from targetprop.attach.loads import BROUGHT
from targetprop.attach.sites import Site, untied
from targetprop.rules import Rule

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Late:
    """A forward pre-hook that draws the ω of a model that was attached on the meta device."""

    def __init__(self, model: nn.Module, link: Link):
        """Hook ``model``, whose modules share ``link``."""
        self.link = link
        self.handle: RemovableHandle | None = model.register_forward_pre_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which is hooked already."""
        return self.__dict__ | {"handle": None}

    def remove(self) -> None:
        """Unhook."""
        if self.handle is not None:
            self.handle.remove()

    def __call__(self, module: nn.Module, args: tuple) -> None:
        """Draw what can be drawn.

        Raises:
            RuntimeError: the model is a copy whose ω nobody draws.

        """
        if self.link.handle is None:
            raise RuntimeError(
                "this is a copy of a model that was attached on the meta device, and its feedback "
                "weights were never drawn; copy it after its first pass, or attach the copy alone."
            )
        self.link.handle._draw_late()


@torch.no_grad()
def draw(sites: Iterable[Site], rule: Rule, seed: int) -> list[Site]:
    """Draw the ω of those ``sites`` that have left the meta device; returns the others.

    ``to_empty`` takes ω along; ``load_state_dict(assign=True)`` of a plain checkpoint brings θ
    alone, and ω is made beside it. What a checkpoint brought is left as it is.
    """
    left, made = [], {}
    drawn: set[int] = set()
    for site in sites:
        if site.omega.is_meta:
            theta = site.array()
            if theta.is_meta:
                left.append(site)
                continue
            omega = torch.empty_like(site.omega, device=theta.device)
            made.setdefault(id(site.omega), nn.Parameter(omega, requires_grad=False))
            site.module.register_parameter(site.layout.feedback, made[id(site.omega)])
        given = site.layout.feedback in site.module.__dict__.get(BROUGHT, ())
        if not given and id(site.omega) not in drawn:
            fill(site.omega, site, rule, seed)
        drawn.add(id(site.omega))
    return left


def separate(sites: Sequence[Site]) -> None:
    """Give maps whose θ was untied an ω of their own, which starts as the shared one."""
    made: dict[tuple[int, int], nn.Parameter] = {}
    shared = [(site, site.omega) for site in untied(sites)]
    for site, omega in shared:
        own = made.setdefault(
            (id(omega), id(site.theta)), nn.Parameter(omega.detach().clone(), requires_grad=False)
        )
        site.module.register_parameter(site.layout.feedback, own)


def present(model: nn.Module) -> set[int]:
    """The modules that it has now."""
    return {id(module) for module in model.modules()}


def tell_newcomers(
    model: nn.Module, known: set[int], link: Link, gains: bool, strict: bool
) -> bool:
    """Say which modules with a map, or with a gain where ``gains`` are learned, came since.

    Raises:
        NotCovered: some did, and ``strict``.

    """
    found = []
    for name, module in model.named_modules():
        kind = None if id(module) in known else kind_of(module)
        if kind is None or name in link.left_out or kind.name == "activation":
            continue
        if kind.name != "norm" or gains:
            what = type(module).__name__
            if isinstance(module, AttachedModule):
                what = f"a copy of an attached {module._feedback_base.__name__}"
            found.append(f"'{name}' ({what})")
    if not found:
        return False
    text = (
        f"{', '.join(found)} joined the model after attach: the signal travels there by θᵀ, or by "
        "an ω that does not learn; call detach() of the feedback, then attach again."
    )
    if strict:
        raise NotCovered(text)
    warnings.warn(text, UserWarning, stacklevel=5)
    return True
