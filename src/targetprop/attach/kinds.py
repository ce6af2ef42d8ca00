"""Which modules can be attached: a kind for each family, its maps, and the class that it gets."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from targetprop.attach import modules
from targetprop.attach.attention import AttachedAttention
from targetprop.attach.link import AttachedModule
from targetprop.attach.registered import AttachedRegistered, registered
from targetprop.laboratory.activations import MODULES as ACTIVATIONS


@dataclass(frozen=True)
class Layout:
    r"""Where one map of a module keeps its weight, and its form as matrices (groups, outputs, d).

    Attributes:
        weight: name of θ.
        feedback: name of ω.
        form: how θ lies: ``"dense"`` (outputs, inputs), ``"inputs_first"`` (inputs, outputs),
            ``"kernel"`` (outputs, inputs / groups, \*kernel), ``"kernel_inputs_first"`` (inputs,
            outputs / groups, \*kernel: one position of the input answers with a whole kernel),
            ``"diagonal"`` (gains, as many maps of one input), ``"field"`` (any).
        groups: of a kernel.
        part: the rows (from, to) of θ that are this map, where several share one.
        suffix: the map's name within the module, where it has several.
    """

    weight: str = "weight"
    feedback: str = "feedback_weight"
    form: str = "dense"
    groups: int = 1
    part: tuple[int, int] | None = None
    suffix: str = ""

    def of(self, w: Tensor) -> Tensor:
        """The part of θ or ω that is this map."""
        return w if self.part is None else w[self.part[0] : self.part[1]]

    def matrices(self, w: Tensor) -> Tensor:
        """The same as matrices."""
        if self.form == "dense":
            return w.unsqueeze(0)
        if self.form == "inputs_first":
            return w.T.unsqueeze(0)
        if self.form == "kernel":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1)
        if self.form == "kernel_inputs_first":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1).mT
        return w.reshape(-1, 1, 1)

    def restore(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """The array of ``shape`` whose matrices these are."""
        if self.form == "dense":
            return matrices[0]
        if self.form == "inputs_first":
            return matrices[0].T
        return (matrices.mT if self.form == "kernel_inputs_first" else matrices).reshape(
            tuple(shape)
        )


def projections(attention: Any, direct: bool) -> list[Layout]:
    """The three in-projections of an attention."""
    layouts, size = [], attention.embed_dim
    for index, letter in enumerate("qkv"):
        own = f"{letter}_proj_feedback_weight"
        if attention.in_proj_weight is None:
            layouts.append(Layout(f"{letter}_proj_weight", own, suffix=f"{letter}_proj"))
        else:
            feedback = own if direct else "in_proj_feedback_weight"
            part = (index * size, (index + 1) * size)
            layouts.append(Layout("in_proj_weight", feedback, part=part, suffix=f"{letter}_proj"))
    return layouts


@dataclass(frozen=True)
class Kind:
    """A family of modules that can be attached.

    Attributes:
        name: of the kind.
        types: the classes whose ``forward`` it knows; subclasses count that inherit it.
        mixin: what such a module becomes.
        layouts: (module, direct) ↦ its maps.
    """

    name: str
    types: tuple[type[nn.Module], ...]
    mixin: type[AttachedModule]
    layouts: Callable[[Any, bool], list[Layout]]


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
)  # fmt: skip


KINDS = {
    kind.name: kind
    for kind in (
        Kind("linear", (nn.Linear,), modules.AttachedLinear, lambda m, direct: [Layout()]),
        Kind(
            "convolution",
            CONVOLUTIONS,
            modules.AttachedConvolution,
            lambda m, direct: [Layout(form="kernel", groups=m.groups)],
        ),
        Kind(
            "transposed_convolution",
            TRANSPOSED,
            modules.AttachedTransposedConvolution,
            lambda m, direct: [Layout(form="kernel_inputs_first", groups=m.groups)],
        ),
        Kind("attention", (nn.MultiheadAttention,), AttachedAttention, projections),
        Kind(
            "hf_conv1d", (), modules.AttachedConv1D, lambda m, direct: [Layout(form="inputs_first")]
        ),
        Kind("registered", (), AttachedRegistered, lambda m, direct: [Layout(form="field")]),
        Kind(
            "norm",
            NORMS,
            modules.AttachedNorm,
            lambda m, direct: [Layout(feedback="feedback_gain", form="diagonal")],
        ),
        Kind(
            "activation",
            tuple(set(ACTIVATIONS) - {nn.Identity}),
            modules.AttachedActivation,
            lambda m, direct: [],
        ),
    )
}


REFUSED: dict[type[nn.Module], str] = {
    nn.RNNBase: "its fused kernel multiplies by θᵀ; write the recurrence with cells of nn.Linear",
    nn.RNNCellBase: "its fused kernel multiplies by θᵀ; write the cell with nn.Linear",
    nn.Bilinear: "it multiplies two signals and θ at once; "
    "write it as nn.Linear of their outer product",
}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module; None for others, and for those that compute something of their own."""
    if isinstance(module, AttachedModule):
        return KINDS[module._feedback_kind]
    own = own_class(module)
    if own.__name__ == "Conv1D" and own.__module__ == "transformers.pytorch_utils":
        return KINDS["hf_conv1d"]
    for kind in KINDS.values():
        for known in kind.types:
            if isinstance(module, known) and inherits(module, known):
                return kind
    return KINDS["registered"] if registered(module) else None


def inherits(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether the module computes what class ``known`` does."""
    methods = [
        name for name in ("forward", "_conv_forward", "_output_padding") if hasattr(known, name)
    ]
    own = type(module)
    return "forward" not in module.__dict__ and all(
        getattr(own, name) is getattr(known, name) for name in methods
    )


_classes: weakref.WeakValueDictionary[tuple[type[nn.Module], str], type[AttachedModule]] = (
    weakref.WeakValueDictionary()
)


def attached_class(base: type[nn.Module], kind: Kind) -> type[AttachedModule]:
    """The subclass of ``base`` that runs through ω; made once, named as ``base``."""
    key = (base, kind.name)
    made = _classes.get(key)
    if made is None:
        names = {
            "_feedback_base": base,
            "_feedback_kind": kind.name,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
        }
        made = _classes[key] = type(base.__name__, (kind.mixin, base), names)
    return made


def own_class(module: nn.Module) -> type[Any]:
    """The class of a module, under the one that ``torch.nn.utils.parametrize`` puts over it."""
    own = type(module)
    base = own.__bases__[0]
    over = parametrize.is_parametrized(module) and own.__name__ == f"Parametrized{base.__name__}"
    return base if over else own


def become(module: Any, base: type[nn.Module]) -> None:
    """Give a module another class of its own; a parametrisation's stays the uppermost.

    ``remove_parametrizations`` looks for it there.
    """
    own = type(module)
    if own_class(module) is not own:
        twin = vars(own).get("_feedback_twin")  # the class that it had before
        if twin is None or twin.__bases__ != (base,):
            names = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
            twin = type(own.__name__, (base,), names | {"_feedback_twin": own})
        base = twin
    module.__class__ = base


def rebuilt(base: type[nn.Module], kind: str) -> nn.Module:
    """An empty attached module: what unpickling and deepcopy start from."""
    made = attached_class(base, KINDS[kind])
    return made.__new__(made)
