"""What becomes of a model after ``attach``: leaves the meta device, is untied, gets new modules."""

from __future__ import annotations

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
from targetprop.telling import warn

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
        self.link.handle.draw_late()


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


class Known:
    """The modules that a model had when its newcomers were last told of."""

    def __init__(self, model: nn.Module):
        """Those that ``model`` has now."""
        self.model = model
        self.names: set[str] = set()
        self.found: set[int] | None = None
        self.renew()

    def renew(self) -> None:
        """Those that it has now."""
        self.found = {id(module) for module in self.model.modules()}

    @property
    def ids(self) -> set[int]:
        """Of the modules; of a copy, those of the same names, found once its model is whole."""
        if self.found is None:
            named = self.model.named_modules()
            self.found = {id(module) for name, module in named if name in self.names}
        return self.found

    def __getstate__(self) -> dict[str, Any]:
        """For a copy, whose modules are others of the same names."""
        names = {name for name, module in self.model.named_modules() if id(module) in self.ids}
        return {"model": self.model, "names": names, "found": None}


def tell_newcomers(known: Known, link: Link, gains: bool, strict: bool) -> None:
    """Say which modules with a map, or with a gain where ``gains`` are learned, are not ``known``.

    Raises:
        NotCovered: some did, and ``strict``.
    """
    found = []
    for name, module in known.model.named_modules():
        kind = None if id(module) in known.ids else kind_of(module)
        if kind is None or name in link.left_out or kind.name == "activation":
            continue
        if kind.name != "norm" or gains:
            what = type(module).__name__
            if isinstance(module, AttachedModule):
                what = f"a copy of an attached {module._feedback_base.__name__}"
            found.append(f"'{name}' ({what})")
    if not found:
        return
    text = (
        f"{', '.join(found)} joined the model after attach: the signal travels there by θᵀ, or by "
        "an ω that does not learn; call detach() of the feedback, then attach again."
    )
    if strict:
        raise NotCovered(text)
    known.renew()
    warn(text)
