"""ω at first: drawn by the rule, one for maps that share θ, of any shape for direct feedback."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from targetprop.attach.install import is_paired, look, sites_of, unfed
from targetprop.attach.kinds import KINDS
from targetprop.attach.link import AttachedModule, Link
from targetprop.attach.sites import Site
from targetprop.rules import Rule
from targetprop.seeds import mixed


def plant(
    model: nn.Module,
    link: Link,
    modules: dict[str, AttachedModule],
    example_inputs: Sequence[Any],
    left_out: Sequence[str],
    strict: bool,
    adopting: bool,
    seed: int,
) -> tuple[list[Site], Any]:
    """(the maps that send a signal back, each with its ω; the last module that examples reached).

    Args:
        model: the model.
        link: what its attached modules share, the rule with it.
        modules: the attached modules, by name.
        example_inputs: tell which maps only read data, and the shapes of direct feedback.
        left_out: names of modules that the user left alone.
        strict: refuse what is not covered.
        adopting: the model was attached before, so that ω are there.
        seed: of the draws.
    """
    reads, shapes, last = set(), {}, None
    if (adopting or is_paired(model)) and link.rule.own_feedback:
        reads = unfed(modules)
    if example_inputs:
        seen = look(model, link, example_inputs, left_out, strict)
        reads, shapes, last = (reads, {}, None) if adopting else seen
    sites = sites_of(modules, reads, link.rule.direct)
    grow(sites, link.rule, seed, shapes, last, adopting)
    return sites, last


def grow(
    sites: Sequence[Site],
    rule: Rule,
    seed: int,
    shapes: Mapping[int, Any],
    last: Any,
    adopting: bool,
) -> None:
    """Give every map its ω; maps with one θ share one ω.

    Args:
        sites: the maps.
        rule: how ω are drawn.
        seed: of the draws.
        shapes: of each module's inputs and output, by its id, where example inputs showed them.
        last: the last module that they reached.
        adopting: the ω that are there are the rule's already.
    """
    shared: dict[tuple, nn.Parameter] = {}
    for site in sites:
        if not rule.own_feedback:
            continue
        if site.omega is not None:  # a paired layer's, drawn as targetprop.pair draws
            if not adopting and type(rule).initial is not Rule.initial:
                fill(site.omega.data, site, rule, seed)
            continue
        weight = site.array()
        key = (id(site.theta), site.layout.form, site.layout.groups, site.layout.feedback)
        if site.theta is None or key not in shared or rule.direct:
            omega = torch.empty_like(weight)
            if rule.direct and site.layout.form != "diagonal":
                omega = direct(site, rule, seed, shapes, last, weight)
            elif not weight.is_meta:
                fill(omega, site, rule, seed)
            shared[key] = nn.Parameter(omega, requires_grad=False)
        site.module.register_parameter(site.layout.feedback, shared[key])


def fill(omega: Tensor, site: Site, rule: Rule, seed: int) -> None:
    """ω at first: the rule's draw, one map at a time where several share the array."""
    rows = site.layout.part[1] - site.layout.part[0] if site.layout.part else omega.shape[0]
    for start in range(0, omega.shape[0], rows if site.layout.part else max(1, omega.shape[0])):
        part = omega[start : start + rows] if site.layout.part else omega
        generator = Generator().manual_seed(mixed(seed, key_of(site.name), start))
        if site.layout.form == "field":
            drawn = rule.initial((1, part.shape[0], part[0].numel()), generator).reshape(part.shape)
        else:
            drawn = rule.initial(tuple(site.layout.matrices(part).shape), generator)
            drawn = site.layout.restore(drawn, part.shape)
        part.copy_(drawn)


def direct(
    site: Site, rule: Rule, seed: int, shapes: Mapping[int, Any], last: Any, like: Tensor
) -> Tensor:
    """The ω of direct feedback: (numbers of an error, numbers of an input), for a position each.

    That is where both maps have their features last and every position of the input has an error
    of its own, as each token of a language model; else an error and an input are a sample's.
    """
    error = shapes[id(last)][1]
    inputs = shapes[id(site.module)][0] if id(site.module) in shapes else None
    if inputs is None:
        raise ValueError(
            f"'{site.name}' was not reached by the example inputs, so its "
            "direct feedback has no shape."
        )
    x = inputs["qkv".index(site.layout.suffix[0]) if site.layout.suffix else 0]
    forms = {site.layout.form, KINDS[last._feedback_kind].layouts(last, True)[0].form}
    per_position = forms <= {"dense", "inputs_first"} and error[:-1] == x[:-1]
    if not per_position and error[:1] != x[:1]:
        raise ValueError(
            f"'{site.name}' reads {tuple(x)} while the output's error is {tuple(error)}; direct "
            "feedback alignment needs the samples in the first dimension of both "
            "(batch_first=True, say)."
        )
    known = site.module.__dict__.setdefault("_feedback_positionwise", {})
    known[site.layout.feedback] = per_position
    shape = (error[-1], x[-1]) if per_position else (error[1:].numel(), x[1:].numel())
    generator = Generator().manual_seed(mixed(seed, key_of(site.name)))
    return rule.initial(shape, generator).to(like)


def key_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return zlib.crc32(name.encode())
