"""The maps of a model: where θ and ω are now, and a probe of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from targetprop.attach.kinds import Layout
from targetprop.attach.link import AttachedModule
from targetprop.attach.refusals import refuse_reshaped
from targetprop.attach.registered import map_of
from targetprop.feedback.patches import Field, Patch, Probe
from targetprop.rules import Rule


@dataclass
class Site:
    """One map of an attached model; tensors are looked up anew: FSDP and ``.to()`` replace them.

    Attributes:
        name: the module's name in the model, and the map's where a module has several.
        module: the module.
        layout: where θ and ω lie in it.
    """

    name: str
    module: AttachedModule
    layout: Layout

    @property
    def theta(self) -> nn.Parameter | None:
        """θ where it is a parameter; None where computed (weight norm, pruning, ...)."""
        return self.module._parameters.get(self.layout.weight)

    @property
    def omega(self) -> Any:
        """ω; None where the map sends nothing back or uses θ."""
        return self.module._parameters.get(self.layout.feedback)

    @property
    def frozen(self) -> bool:
        """Whether θ is a parameter that does not learn."""
        return self.theta is not None and not self.theta.requires_grad

    def array(self) -> Tensor:
        """The module's weight as the next forward pass will see it, without a graph."""
        with torch.no_grad(), quiet_parametrizations(self.module):
            if self.layout.weight not in self.module._parameters:
                recompute(self.module)
            return getattr(self.module, self.layout.weight).detach()

    def weight(self) -> Tensor:
        """θ: the part of it that is this map, without sharding."""
        return self.layout.of(whole(self.array()))

    def probe(self) -> Probe | None:
        """θ and ω as a solver may see them; None before a registered map has seen an input."""
        wide = torch.promote_types(self.omega.dtype, torch.float32)
        theta, omega = self.weight().to(wide), self.layout.of(whole(self.omega.detach())).to(wide)
        refuse_reshaped(f"'{self.name}'", theta, omega)
        if self.layout.form != "field":
            return Patch(self.layout.matrices(theta), self.layout.matrices(omega))
        shape = getattr(self.module, "_feedback_shape", None)
        return None if shape is None else Field(map_of(self.module).function, shape, theta, omega)

    def write(self, learned: Tensor, apart: bool = False) -> None:
        """Let ω be what a solver learned; ``apart``: unseen by graphs that hold ω."""
        omega = self.omega
        full = whole(omega.data if apart else omega.detach())
        part = self.layout.of(full)
        part.copy_(
            learned if self.layout.form == "field" else self.layout.restore(learned, part.shape)
        )
        if is_sharded(omega):
            from torch.distributed.tensor import distribute_tensor

            sharded: Any = distribute_tensor(full, omega.device_mesh, omega.placements)
            cast(Any, omega.detach()).to_local().copy_(sharded.to_local())

    def mismatch(self, rule: Rule) -> float:
        """‖B − θ‖_F/‖θ‖_F of the arrays, B what ``rule`` sends through; no ω learns from it.

        It is for you. What a registered map makes of its array (a mask, say) a probe's noise tells.
        """
        theta, omega = self.weight(), self.layout.of(whole(self.omega.detach()))
        wide = torch.promote_types(theta.dtype, torch.float32)
        theta, omega = theta.to(wide), omega.to(wide)
        if self.layout.form == "field" and (seen := self.probe()) is not None:
            return float(seen.having(rule.sent(theta, omega)).mismatch(0))
        return float(
            (rule.sent(theta, omega) - theta).norm()
            / theta.norm().clamp_min(torch.finfo(wide).tiny)
        )


def learners(sites: Iterable[Site]) -> list[Site]:
    """The maps whose ω learn, each ω once."""
    seen, found = set(), []
    for site in sites:
        key = (id(site.omega), site.layout.part)
        if site.omega is None or key in seen:
            continue
        seen.add(key)
        found.append(site)
    return found


def pairs(sites: Iterable[Site]) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """(θ, ω) of the maps whose θ is a parameter, each ω once; frozen ones may learn later."""
    seen = set()
    for site in sites:
        theta, omega = site.theta, site.omega
        if theta is None or omega is None or id(omega) in seen:
            continue
        seen.add(id(omega))
        yield theta, omega


def untied(sites: Iterable[Site]) -> list[Site]:
    """The maps that share their ω with an earlier one though they no longer share its θ."""
    first: dict[int, nn.Parameter | None] = {}
    return [
        site
        for site in sites
        if site.omega is not None and first.setdefault(id(site.omega), site.theta) is not site.theta
    ]


def whole(tensor: Any) -> Tensor:
    """A tensor without its sharding."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor; told by its mesh, since importing the class takes long."""
    return hasattr(tensor, "device_mesh")


def recompute(module: nn.Module) -> None:
    """Run the hooks that compute weights before a pass (norms, pruning), moving nothing else."""
    mode, module.training = module.training, False  # spectral norm iterates in training mode only
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
            hook(module, ())
    module.training = mode


@contextmanager
def quiet_parametrizations(module: nn.Module) -> Iterator[None]:
    """Within it reading a parametrised weight moves nothing: spectral norm iterates in training."""
    own: Any = getattr(module, "parametrizations", None)
    parts = list(own.modules()) if parametrize.is_parametrized(module) else []
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    caching, parametrize._cache_enabled = parametrize._cache_enabled, 0  # keep no weight graphless
    try:
        yield
    finally:
        parametrize._cache_enabled = caching
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
