"""What ``attach`` cannot reach: a watched pass names, never guesses, what would go through θᵀ."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from targetprop.attach.kinds import REFUSED
from targetprop.attach.link import Attached, Link
from targetprop.attach.modules import refuse_other
from targetprop.maps import is_feedback

PRODUCTS = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "outer",
    "addmm", "addmv", "addbmm", "baddbmm", "einsum", "tensordot", "kron", "multi_dot",
    "chain_matmul", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "convolution", "_convolution", "conv_tbc", "lstm",
    "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "scaled_dot_product_attention", "vecdot", "cdist", "cosine_similarity", "solve", "lstsq",
    "_sparse_mm", "multi_head_attention_forward", "grouped_mm", "_grouped_mm",
    "scaled_grouped_mm", "scaled_mm", "_scaled_mm",
}  # fmt: skip
"""Functions of torch that multiply a signal by a weight other than elementwise."""


class NotCovered(ValueError):
    """Raised by ``attach(strict=True)`` where part of a model would send its signal through θᵀ."""


class Watch(TorchFunctionMode):
    """Records every product of a signal that needs a gradient with a parameter outside the maps.

    Attributes:
        found: per parameter name, the function that multiplied by it.

    """

    def __init__(self, model: nn.Module, ignored: Iterable[str] = (), inputs: Any = ()):
        """Watch ``model``, which reads ``inputs``; ``ignored``: names of modules left out."""
        super().__init__()
        left_out = {name for name in ignored if not isinstance(model.get_submodule(name), Attached)}
        self.names: dict[int, str] = {}
        self.constants = {id(buffer) for buffer in model.buffers()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if is_feedback(name) or name.rpartition(".")[0] in left_out:
                self.constants.add(id(parameter))
            else:
                self.names.setdefault(id(parameter), name)
        self.kept: list[Tensor] = []  # so that no id is used twice
        self.found: dict[str, str] = {}
        self.data = {id(value) for value in tensors_in(inputs)}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call ``func`` and look at what it used."""
        out = func(*args, **(kwargs or {}))
        # Within an attached map, or nothing to send, or another autograd.Function.
        hidden = not torch.is_grad_enabled()
        tensors = list(tensors_in([args, kwargs]))
        if any(id(t) in self.data for t in tensors):
            for made in tensors_in([out]):
                self.data.add(id(made))
                self.kept.append(made)
        sources = [(self.names[id(t)], t) for t in tensors if id(t) in self.names]
        if not sources or (hidden and not within_function()):
            return out
        others = [t for t in tensors if id(t) not in self.names and id(t) not in self.constants]
        name = getattr(func, "__name__", "").removeprefix("linalg_")
        if name in PRODUCTS and any(
            t.requires_grad or hidden or is_batchedtensor(t) for t in others
        ):
            for source, tensor in sources:
                if tensor.dim() > 1:
                    self.found.setdefault(source, name)
        elif all(is_constant(t, self.data) for t in others):
            # Made of weights and constants: a weight under another name.
            for made in tensors_in([out]):
                if made.is_floating_point() and id(made) not in self.names:
                    self.names[id(made)] = sources[0][0]
                    self.kept.append(made)
        return out


def within_function() -> bool:
    """Whether the caller runs in the forward of an ``autograd.Function`` outside the maps.

    Gradients are off there though the signal passes: a fused layer, reentrant checkpointing.
    """
    frame = sys._getframe(2)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Attached):
            return False
        if frame.f_code is APPLY:
            return not frame.f_locals["cls"].__module__.startswith("targetprop.")
        frame = frame.f_back
    return False


APPLY = Function.apply.__func__.__code__


def is_constant(tensor: Tensor, data: set[int]) -> bool:
    """Whether a tensor is neither signal, data nor places in a table: a mask, identity, scale."""
    return (
        not tensor.requires_grad
        and id(tensor) not in data
        and (tensor.is_floating_point() or tensor.dtype == torch.bool)
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def refused(model: nn.Module, ignored: Iterable[str] = ()) -> list[str]:
    """A sentence for every module that cannot be attached as it is."""
    sentences, ignored = [], set(ignored)
    for name, module in model.named_modules():
        for kind, why in REFUSED.items():
            if isinstance(module, kind) and name not in ignored:
                sentences.append(f"'{name}' ({type(module).__name__}): {why}")
    return sentences


def sentences(found: dict[str, str]) -> list[str]:
    """A sentence for every parameter that a pass multiplied by outside a map."""
    remedy = (
        "use it through a module such as nn.Linear, or register its module with targetprop.register"
    )
    return [
        f"'{name}' is multiplied by {function} outside a map: {remedy}"
        for name, function in found.items()
    ]


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
    warnings.warn(text, UserWarning, stacklevel=2)


class FirstPass:
    """Watches the first eager pass of a model attached without example inputs, then goes."""

    def __init__(self, model: nn.Module, ignored: Sequence[str], strict: bool, link: Link):
        """Hook ``model``, whose attached modules share ``link``."""
        self.ignored, self.strict, self.link = list(ignored), strict, link
        self.watch: Watch | None = None
        self.done = False
        self.handles = [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after, always_call=True),
        ]

    def before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Begin to watch."""
        if self.link.handle is None:  # a copy of the model
            self.remove()
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or self.link.exact
            or self.done
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
        self.remove()
        report(sentences(watch.found), self.strict)

    def stepped(self, weights: Iterable[Tensor | None]) -> None:
        """A step was made; with gradients but no eager forward, other products are unseen."""
        if self.done or not any(
            weight is not None and weight.grad is not None for weight in weights
        ):
            return
        self.remove()
        text = (
            "the forward of the model itself never ran eagerly, so what it multiplies outside its "
            "maps was not seen; give example inputs: attach(model, x)."
        )
        if self.strict:
            raise NotCovered(text)
        warnings.warn(text, UserWarning, stacklevel=2)

    def remove(self) -> None:
        """Unhook."""
        self.done = True
        for handle in self.handles:
            handle.remove()


Call = tuple[Attached, bool, Any]
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
        if isinstance(module, Attached)
    ]
    try:
        with unchanged(model), torch.enable_grad(), Watch(model, ignored, inputs) as watch:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watch, calls
