"""A watched pass: which parameters a signal is multiplied by outside the maps, told by torch's ops.

Whatever a user writes (``@``, ``einsum``, ``vmap``, a scripted function, an ``autograd.Function``)
ends in a few products of torch's dispatcher. There the watch knows each tensor by its storage, so
a view or a detached copy of a parameter is still that parameter, and so is what is made of
parameters and constants alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from targetprop.attach.function import transformed
from targetprop.attach.link import AttachedModule
from targetprop.maps import is_feedback

PRODUCTS = {
    range(99): {
        "mm", "bmm", "mv", "dot", "vdot", "_int_mm", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn",
        "_lstm_mps", "_linalg_solve_ex", "linalg_solve_triangular", "triangular_solve",
        "cholesky_solve", "linalg_lu_solve", "linalg_lstsq", "linalg_ldl_solve", "lu_solve",
        "ormqr",
    },
    range(2): {
        "matmul", "linear", "convolution", "_convolution", "convolution_overrideable", "conv_tbc",
        "_cdist_forward", "_euclidean_dist", "_grouped_mm", "_scaled_mm", "_scaled_grouped_mm",
    },
    range(1, 3): {
        "addmm", "addmv", "addbmm", "baddbmm", "addr", "sspaddmm", "_addmm_activation",
        "_sparse_addmm",
    },
    range(3): {"_trilinear", "flex_attention"},
    range(0, 7, 6): {"_embedding_bag", "_embedding_bag_forward_only"},
}  # fmt: skip
"""Torch's products by which of their arguments they multiply, and do not add."""

FACTORS = {name: part for part, names in PRODUCTS.items() for name in names}

OWN = ("aten", "prim", "prims", "higher_order", "profiler", "c10d", "_c10d_functional", "fsdp")
"""Namespaces of operators that are no product unless listed; one that a user registered may be."""

PICKS = ("index", "index_select", "gather", "embedding")
COPIES = ("clone", "_to_copy", "_unsafe_view", "alias")
TORCH = str(Path(torch.__file__).parent)
HERE = str(Path(__file__).parent)
APPLY = Function.apply.__func__.__code__


class Tag(NamedTuple):
    """What is known of a storage.

    Attributes:
        names: of the parameters that it is made of.
        moves: it depends on what the model reads, too.
        grad: a gradient goes through it.
        form: of what moves and still has names: ``"kernel"``, a weight that a signal modulates, or
            ``"scaled"``, a signal times a weight of its own shape, a product once it is summed.
    """

    names: tuple[str, ...] = ()
    moves: bool = False
    grad: bool = False
    form: str = ""


class Watch(TorchDispatchMode):
    """Records every product of a signal that needs a gradient with a parameter outside the maps.

    Attributes:
        found: per parameter name, the operator that multiplied by it, and where.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, ignored: Iterable[str] = (), inputs: Any = ()):
        """Watch ``model``, which reads ``inputs``; ``ignored``: names of modules left out."""
        super().__init__()
        self.model = model
        self.left_out = {
            name for name in ignored if not isinstance(model.get_submodule(name), AttachedModule)
        }
        self.dims: dict[str, int] = {}
        self.found: dict[str, str] = {}
        self.tags: dict[int, Tag] = {}
        self.kept: dict[int, Any] = {}  # so that no key is used twice
        self.fixed: set[int] = set()
        for value in tensors_in(inputs):
            self.tags[self.key(value)] = Tag(moves=True, grad=value.requires_grad)
        self.learn_names()

    def __enter__(self) -> Watch:
        """Begin; compiled parts run eagerly, or the compiler would give them up for good."""
        known = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
        self.stance: Any = torch.compiler.set_stance("force_eager") if known else nullcontext()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        self.stance.__exit__(*error)

    def learn_names(self) -> None:
        """Take down the parameters that the model has now: FSDP brings its own during the pass."""
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            key = self.key(parameter)
            if key in self.fixed:
                continue
            quiet = is_feedback(name) or name.rpartition(".")[0] in self.left_out
            self.tags[key] = Tag(() if quiet else (name,), grad=parameter.requires_grad)
            self.dims[name] = parameter.dim()
            self.fixed.add(key)

    def key(self, tensor: Tensor) -> int:
        """A tensor's storage, as a number; it keeps no memory alive."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse tensors have none
            self.kept[id(tensor)] = tensor
            return id(tensor)
        if storage._cdata not in self.kept:
            self.kept[storage._cdata] = StorageWeakRef(storage)
        return storage._cdata

    def tag(self, tensor: Tensor) -> Tag:
        """What is known of a tensor; one from before the pass that needs a gradient is a signal."""
        key = self.key(tensor)
        if key not in self.tags:
            if isinstance(tensor, nn.Parameter):
                self.learn_names()
            signal = tensor.requires_grad and not isinstance(tensor, nn.Parameter)
            self.tags.setdefault(key, Tag(moves=signal, grad=signal))
        return self.tags[key]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call ``func``, look at what it used, and take down what it made."""
        tensors = list(tensors_in([args, kwargs]))
        tags = [self.tag(tensor) for tensor in tensors]
        made = self.made(func, args, tensors, tags)
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in([out]):
            key = self.key(tensor)
            if key not in self.fixed:
                self.tags[key] = made
        return out

    def made(self, func: Any, args: tuple, tensors: list[Tensor], tags: list[Tag]) -> Tag:
        """What ``func`` makes of its arguments; products outside the maps are recorded."""
        name = func.name().rpartition("::")[2].partition(".")[0].removesuffix("_")
        factors = FACTORS.get(name)
        if name.startswith("_scaled_dot_product") or name.endswith("_attention_forward"):
            factors = range(3)
        elif func.namespace not in OWN:
            factors = range(99)
        grad = any(t.requires_grad or tag.grad for t, tag in zip(tensors, tags, strict=True))
        names = tuple(dict.fromkeys(name for tag in tags for name in tag.names))
        moving = [tag for tag in tags if tag.moves]
        signal = Tag(moves=True, grad=grad)
        if factors is not None:
            used = list(tensors_in([args[i] for i in factors if i < len(args)]))
            self.look(name, used, [self.tag(tensor) for tensor in used])
            return signal if moving or (names and within_map()) else Tag(names, grad=grad)
        if not moving:
            return Tag(names, grad=grad)
        if name in ("sum", "mean") and moving[0].form:
            self.look(f"mul and {name}", tensors, tags)
            return signal
        if name in PICKS and tags[0].names and not tags[0].moves:
            # Matrices that data choose are weights still; rows of a table are what it says.
            return tags[0] if tensors[0].dim() > 2 else signal
        if name in ("mul", "div") and len(tensors) == 2 and names:
            return tag_of_product(tensors, tags)._replace(grad=grad)
        if len(tensors) == 1 and (
            tags[0].form == "kernel"
            or (tags[0].form and (getattr(func, "is_view", False) or name in COPIES))
        ):
            return tags[0]
        return signal

    def look(self, name: str, tensors: list[Tensor], tags: list[Tag]) -> None:
        """Record the weights among the factors of a product, if one of them is a signal."""
        hidden = not torch.is_grad_enabled()

        def is_signal(tensor: Tensor, tag: Tag) -> bool:
            return tag.moves and (tag.grad if hidden or transformed() else tensor.requires_grad)

        pairs = list(zip(tensors, tags, strict=True))
        sources = [
            source
            for tensor, tag in pairs
            for source in tag.names
            if self.dims[source] > 1 or len(varied(tensor)) > 1
        ]
        if not sources or not any(is_signal(*pair) for pair in pairs):
            return
        # Gradients are off in the forward of an autograd.Function, though the signal passes.
        if within_map() or (hidden and not within_function()):
            return
        matrices = [source for source in sources if self.dims[source] > 1]
        for source in matrices or sources:
            self.found.setdefault(source, f"{name}{place()}")


def tag_of_product(tensors: list[Tensor], tags: list[Tag]) -> Tag:
    """What an elementwise product of a weight with something that moves is.

    A signal spread over dimensions that the weight has makes another weight for every sample; one
    of the weight's own shape is scaled by it, as by a gate. Vectors of gains are left alone.
    """
    at = max((0, 1), key=lambda i: (bool(tags[i].form), bool(tags[i].names)))
    if not tags[1 - at].moves and tags[at].moves:  # times a constant
        return tags[at]
    own = varied(tensors[at])
    if len(own) < 2 or not tags[1 - at].moves:
        return Tag(moves=True)
    spread = bool(own - varied(tensors[1 - at])) and tags[at].form != "scaled"
    return Tag(tags[at].names, True, form="kernel" if spread else "scaled")


def varied(tensor: Tensor) -> set[int]:
    """The dimensions, counted from the last, along which a tensor is not one value repeated."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return set(range(tensor.dim()))
    sizes = zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True)
    return {dim for dim, (size, stride) in enumerate(sizes) if size != 1 and stride != 0}


def callers() -> Iterator[FrameType]:
    """The frames that led here, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def within_map() -> bool:
    """Whether an attached module computes; its hooks, and other methods of it, are the user's."""
    return any(
        frame.f_code.co_filename.startswith(HERE)
        and isinstance(frame.f_locals.get("self"), AttachedModule)
        for frame in callers()
    )


def within_function() -> bool:
    """Whether the forward of an ``autograd.Function`` runs: a fused layer, a checkpoint."""
    return any(frame.f_code is APPLY for frame in callers())


def place() -> str:
    """Where in the user's code this happens."""
    for frame in callers():
        file = frame.f_code.co_filename
        if not file.startswith((TORCH, HERE, "<")):
            return f" ({Path(file).name}, line {frame.f_lineno})"
    return ""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])
