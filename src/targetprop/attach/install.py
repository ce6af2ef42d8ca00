"""From a model to its maps: modules in place, what the example inputs show, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from targetprop.attach import coverage
from targetprop.attach.kinds import KINDS, NORMS, attached_class, become, kind_of, own_class
from targetprop.attach.link import AttachedModule, Broadcast, Link, links_of
from targetprop.attach.loads import BROUGHT, LEFT_OUT
from targetprop.attach.reminder import Reminder
from targetprop.attach.sites import Site
from targetprop.laboratory.pairing import Network
from targetprop.maps import is_feedback
from targetprop.rules import Rule, rule_of
from targetprop.telling import warn

Gains = Literal["exact", "learned"]


def take(
    model: nn.Module,
    rule: Rule,
    only: str | None,
    skip: str | None,
    gains: Gains,
    beta: float | None,
) -> tuple[Link, dict[str, AttachedModule], list[str]]:
    """Make a model's maps attached modules; the model stays as it was on a refusal or without any.

    Returns:
        their link, the modules by name, and the names of those that the user left out.
    """
    before = next(iter(links_of(model)), None)
    if before is not None:
        taken = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, AttachedModule)
        }
        unhook(model, coverage.FirstPass, Reminder)  # of the model that this one is a copy of
        return before, taken, list(before.left_out)
    if rule.direct and gains == "learned":
        raise ValueError(
            "direct feedback alignment sends errors past the normalisations, so gains='learned' "
            "would change nothing; leave it out."
        )
    link, taken, left_out = Link(rule, rule.direct, beta=beta), {}, []
    try:
        for name, module in model.named_modules():
            parent = name.rpartition(".")[0]
            unused = parent in left_out and isinstance(
                model.get_submodule(parent), nn.MultiheadAttention
            )
            if (
                unused
                or (only is not None and not re.search(only, name))
                or (skip is not None and re.search(skip, name))
            ):
                left_out.append(name)
                continue
            kind = kind_of(module)
            if (
                kind is None
                or (kind.name == "norm" and gains == "exact")
                or (kind.name == "activation" and beta is None)
            ):
                continue
            if kind.name == "norm" and getattr(module, "weight", None) is None:
                continue
            refuse_weights(name, module)
            attached: Any = module
            become(attached, attached_class(own_class(module), kind))
            attached._feedback = link
            taken[name] = attached
        link.left_out = tuple(left_out)
        refuse_idle(model, taken, skip, gains, beta, left_out)
    except BaseException:  # a warning that the user makes an error, too
        give_back(model, taken)
        raise
    if not any(KINDS[m._feedback_kind].layouts(m, rule.direct) for m in taken.values()):
        give_back(model, taken)
        taken = {}
    return link, taken, left_out


def give_back(model: nn.Module, taken: Mapping[str, AttachedModule]) -> None:
    """Release all modules of ``model`` that were taken."""
    paired = is_paired(model)
    for module in taken.values():
        release(module, paired)
    unhook(model, Broadcast)


def unhook(model: nn.Module, *kinds: type) -> None:
    """Take hooks that are of ``kinds``, or methods of such, off all modules, copied ones too."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", hook), kinds):
                    del hooks[key]


def refuse_weights(name: str, module: nn.Module) -> None:
    """Refuse weights that feedback cannot be like.

    Raises:
        ValueError: they have no shape yet, are complex, or have the name of ω.
    """
    own = list(module.parameters())
    if any(isinstance(p, UninitializedParameter) for p in own):
        raise ValueError(
            f"'{name}' ({type(module).__name__}) has no shape yet; run one batch through "
            "the model before attach."
        )
    if any(p.is_complex() for p in own):
        raise ValueError(
            f"'{name}' ({type(module).__name__}) has complex weights, which feedback "
            "does not serve; skip it."
        )
    kind = kind_of(module)
    layouts = kind.layouts(module, False) if kind else ()
    # To look at a parametrised weight is to compute it: spectral norm would iterate.
    if not parametrize.is_parametrized(module) and not all(
        hasattr(module, layout.weight) for layout in layouts
    ):
        if kind is not None and kind.name == "registered":
            raise ValueError(
                f"'{name}' ({type(module).__name__}) has no parameter called 'weight', which a "
                "registered map must have; name it so."
            )
        raise ValueError(
            f"'{name}' ({type(module).__name__}) has no weight before its first pass; run one "
            "batch through the model before attach."
        )
    known = module._parameters.get("feedback_weight")  # a layer that was paired keeps its own
    if known is not None and known.shape != getattr(getattr(module, "weight", None), "shape", None):
        raise ValueError(
            f"'{name}' ({type(module).__name__}) has a feedback_weight of its own, where ω "
            "would go; rename or skip it."
        )


def refuse_idle(
    model: nn.Module,
    taken: Mapping[str, AttachedModule],
    skip: str | None,
    gains: Gains,
    beta: float | None,
    left_out: Sequence[str],
) -> None:
    """Refuse settings that would change nothing, and name the modules that they do not reach.

    Raises:
        ValueError: ``skip`` matches no module, there is no activation for ``beta``, or ``gains``
            reaches none of the normalisations that there are.
    """
    kinds = {module._feedback_kind for module in taken.values()}
    others = {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, AttachedModule) and name not in left_out
    }
    idle, missed = [], []
    if skip is not None and not any(re.search(skip, name) for name, _ in model.named_modules()):
        idle.append(f"skip={skip!r} matches no module")
    if beta is not None:
        unknown = listed({k: m for k, m in others.items() if isinstance(m, ACTIVATIONS)})
        if "activation" not in kinds:
            idle.append(f"beta={beta} finds no activation that is a module" + among(unknown))
        elif unknown:
            missed.append(f"beta={beta} nudges no {unknown}, whose exact derivative is taken")
    if gains == "learned":
        unknown = listed({k: m for k, m in others.items() if scales(m)})
        if unknown and "norm" not in kinds:
            idle.append("gains='learned' finds no normalisation" + among(unknown))
        elif unknown:
            missed.append(f"gains='learned' gives no feedback gains to {unknown}, read as they are")
    if idle:
        raise ValueError(f"{' and '.join(idle)} of {type(model).__name__}; leave it out.")
    if missed:
        text = f"{'; '.join(missed)}: only torch's own modules, by their own forward, are known."
        warn(text)


ACTIVATIONS = tuple(
    kind
    for name in nn.modules.activation.__all__
    if (kind := getattr(nn, name)) is not nn.MultiheadAttention
)


def scales(module: nn.Module) -> bool:
    """Whether a module is, by its class or its name, a normalisation with gains of its own."""
    named = isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
    return named and any(p is not None for p in module._parameters.values())


def listed(modules: Mapping[str, nn.Module]) -> str:
    """Modules by name and class."""
    return ", ".join(f"'{name}' ({type(module).__name__})" for name, module in modules.items())


def among(unknown: str) -> str:
    """What is there instead."""
    return f" that attach knows (there is {unknown})" if unknown else ""


def look(
    model: nn.Module,
    link: Link,
    example_inputs: Sequence[Any],
    left_out: Sequence[str],
    strict: bool,
) -> tuple[set, dict, Any]:
    """What example inputs show: which modules only read data, all shapes, the last map's module."""
    rule, link.rule = link.rule, rule_of("symmetric")  # no ω yet
    try:
        watch, calls = coverage.example_pass(model, example_inputs, left_out)
    except (TypeError, AttributeError) as error:
        if len(example_inputs) == 1 and isinstance(example_inputs[0], (tuple, list)):
            raise TypeError(
                f"{type(model).__name__} does not take the example input, a "
                f"{type(example_inputs[0]).__name__} ({error}); give its inputs one by one, as to "
                "the model: attach(model, x)."
            ) from error
        raise
    finally:
        link.rule = rule
    coverage.report(coverage.sentences(watch), strict)
    sends = {id(module) for module, needs, _ in calls if needs}
    reads = {id(module) for module, _, _ in calls} - sends
    shapes = {id(module): shape for module, _, shape in calls}
    maps = [module for module, _, _ in calls if module._feedback_kind not in ("norm", "activation")]
    return reads, shapes, maps[-1] if maps else None


def unfed(modules: Mapping[str, AttachedModule]) -> set[int]:
    """The modules that were given no ω: what only reads data needs none."""
    return {id(m) for m in modules.values() if not any(map(is_feedback, m._parameters))}


def sites_of(modules: Mapping[str, AttachedModule], reads: set, direct: bool) -> list[Site]:
    """The maps of all ``modules`` that send a signal back; those of ``reads`` only read data."""
    sites = []
    for name, module in modules.items():
        if id(module) in reads:
            continue
        for layout in KINDS[module._feedback_kind].layouts(module, direct):
            if direct:
                layout = replace(layout, feedback=f"direct_{layout.feedback}")
            sites.append(Site(".".join(filter(None, (name, layout.suffix))), module, layout))
    return sites


def is_paired(model: nn.Module) -> bool:
    """Whether layers of ``targetprop.pair`` are part of it, whose ω are theirs."""
    return any(isinstance(module, Network) for module in model.modules())


def release(module: AttachedModule, paired: bool = False) -> None:
    """Give a module back its class; ω that came with a paired layer stay."""
    base = module._feedback_base
    if own_class(module) is not attached_class(base, KINDS[module._feedback_kind]):
        warn(
            f"{type(module).__name__} got another class after attach (by FSDP, say); it stays "
            "attached."
        )
        return
    for name in [name for name in module._parameters if is_feedback(name)]:
        if not (paired and name in ("feedback_weight", "feedback_bias")):
            del module._parameters[name]
    for name in ("_feedback", "_feedback_shape", "_feedback_positionwise"):
        module.__dict__.pop(name, None)
    for name in (BROUGHT, LEFT_OUT):
        module.__dict__.pop(name, None)
    become(module, base)
