"""What ``attach`` cannot reach: a watched pass names, never guesses, what would go through θᵀ."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.attach.kinds import REFUSED, kind_of
from targetprop.attach.link import AttachedModule, Link
from targetprop.attach.registered import refuse_other
from targetprop.attach.watch import Watch, tensors_in
from targetprop.telling import warn


class NotCovered(ValueError):
    """Raised by ``attach(strict=True)`` where part of a model would send its signal through θᵀ."""


def refused(model: nn.Module, ignored: Iterable[str] = ()) -> list[str]:
    """A sentence for every module that cannot be attached as it is."""
    sentences, ignored = [], set(ignored)
    for name, module in model.named_modules():
        for kind, why in REFUSED.items():
            if isinstance(module, kind) and name not in ignored:
                sentences.append(f"'{name}' ({type(module).__name__}): {why}")
    return sentences


def sentences(watch: Watch) -> list[str]:
    """A sentence for every parameter that a watched pass multiplied by outside a map."""
    return [
        f"'{name}' is multiplied by {function} outside a map: {remedy(name, watch)}"
        for name, function in watch.found.items()
    ]


def remedy(name: str, watch: Watch) -> str:
    """What to do about the parameter called ``name``."""
    for path, module in owners(name, watch.model):
        if isinstance(module, torch.jit.ScriptModule):
            return f"'{path}' was scripted, which attach cannot enter; leave out torch.jit"
        kind = kind_of(module)
        if (
            kind
            and kind.name not in ("norm", "activation")
            and not isinstance(module, AttachedModule)
        ):
            return f"'{path}' was added after attach; call detach() and attach again"
    return (
        "use it through a module such as nn.Linear, or register its module with targetprop.register"
    )


def owners(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a parameter is part of, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name, model.get_submodule(name)


def report(problems: Sequence[str], strict: bool) -> None:
    """Say what is not covered.

    Raises:
        NotCovered: there is something, and ``strict``.
    """
    if not problems:
        return
    text = (
        "attach does not reach all of this model; through these parts the signal travels by θᵀ, as "
        "in backpropagation (name them in skip= to have it so): " + "; ".join(problems) + "."
    )
    if strict:
        raise NotCovered(text)
    warn(text)


class FirstPass:
    """Watches the first eager passes of a model, one as it trains and one in ``eval()``, then goes.

    A model that runs in ``eval()`` first is watched again once it trains: branches may differ.
    """

    def __init__(
        self, model: nn.Module, ignored: Sequence[str], strict: bool, link: Link, shown: Any = ()
    ):
        """Hook ``model``, whose attached modules share ``link``; ``shown``: example inputs."""
        self.ignored, self.strict, self.link = list(ignored), strict, link
        self.watch: Watch | None = None
        self.seen: set[bool] = {model.training} if shown else set()
        self.told: set[str] = set()
        self.handles: list[Any] = []
        if True not in self.seen:
            self.handles = [
                model.register_forward_pre_hook(self.before, with_kwargs=True),
                model.register_forward_hook(self.after, always_call=True),
            ]

    @property
    def done(self) -> bool:
        """Whether it is gone."""
        return not self.handles

    def before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Begin to watch."""
        if self.link.handle is None:  # a copy of the model
            self.remove()
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or self.link.exact
            or self.done
            or model.training in self.seen
        ):
            return
        if self.watch is not None:  # of a pass that was interrupted
            self.watch.__exit__(None, None, None)
        self.watch = Watch(model, self.ignored, (args, kwargs))
        self.watch.__enter__()

    def after(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Say what was seen."""
        if torch.compiler.is_compiling() or self.watch is None:
            return
        watch, self.watch = self.watch, None
        watch.__exit__(None, None, None)
        if output is None and sys.exc_info()[0] is not None:  # the pass failed: the next one tells
            return
        self.seen.add(model.training)
        if model.training:
            self.remove()
        watch.found = {name: how for name, how in watch.found.items() if name not in self.told}
        self.told |= set(watch.found)
        report(sentences(watch), self.strict)

    def stepped(self, weights: Iterable[Tensor | None]) -> None:
        """A step was made; with gradients but no eager forward, other products are unseen."""
        if (
            self.done
            or self.seen
            or not any(weight is not None and weight.grad is not None for weight in weights)
        ):
            return
        self.remove()
        text = (
            "the forward of the model itself never ran eagerly, so what it multiplies outside its "
            "maps was not seen; give example inputs, attach(model, x), or, where it has no forward "
            "of its own, attach its parts."
        )
        if self.strict:
            raise NotCovered(text)
        warn(text)

    def remove(self) -> None:
        """Unhook."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


Call = tuple[AttachedModule, bool, Any]
"""An attached module, whether its input needs a gradient, and the shapes (of inputs, of output)."""


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Within it a pass leaves no trace: buffers, random numbers and gradients stay as before."""
    buffers = [
        (m, key, b, b.detach().clone())
        for m in model.modules()
        for key, b in m._buffers.items()
        if b is not None
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng([d.index for d in devices]):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)


def example_pass(
    model: nn.Module, inputs: Sequence[Any], ignored: Sequence[str]
) -> tuple[Watch, list[Call]]:
    """One pass of the example inputs: what it used outside the maps, and the calls in order."""
    calls: list[Call] = []

    def seen(module, args, kwargs, output):
        given = [value for value in tensors_in([args, kwargs]) if value.is_floating_point()]
        first = output[0] if isinstance(output, tuple) else output
        if module._feedback_kind == "attention":  # in the order of its projections
            named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            read = [named[name] for name in ("query", "key", "value")]
        else:
            read = given[:1]
        shapes = [value.shape for value in read], first.shape
        # Without gradients (reentrant checkpointing runs so) nothing tells what a call needs.
        calls.append(
            (
                module,
                not torch.is_grad_enabled() or any(value.requires_grad for value in given),
                shapes,
            )
        )
        if module._feedback_kind == "registered":
            refuse_other(module, given[0].detach())

    handles = [
        module.register_forward_hook(seen, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, AttachedModule)
    ]
    try:
        with unchanged(model), torch.enable_grad(), Watch(model, ignored, inputs) as watch:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watch, calls
