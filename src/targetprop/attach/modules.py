"""The maps of a model in place: each keeps its class name, its parameters and its hooks; only ``forward`` runs through ω.

A module of a known kind gets a subclass of its own class, so ``isinstance``, ``print``, hooks, ``state_dict`` and a user's
subclass stay what they were; ω is one more parameter of the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targetprop.attach import function
from targetprop.laboratory.activations import MODULES as ACTIVATIONS
from targetprop.maps import MAPS, AutogradMap, along, is_feedback
from targetprop.rules import Rule


@dataclass
class Link:
    """What the attached modules of one model share.

    Attributes:
        rule: what their maps send back.
        direct: as the rule has it, also while the example inputs run by another.
        exact: backpropagate for now.
        stale: weights were loaded without their ω, so every map must be probed.
        beta: the nudge of activations, or None for an infinitesimal one.
        error: ∂ℓ/∂(output) of the backward pass under way, for direct feedback alignment.
        handle: a weak reference to the model's ``Feedback``, while there is one; copies of the model have none.

    """

    rule: Rule
    direct: bool = False
    exact: bool = False
    stale: bool = False
    beta: float | None = None
    error: Tensor | None = field(default=None, repr=False)
    handle: Callable[[], Any] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the error of a pass that is over, and without the handle, which is another model's."""
        return self.__dict__ | {"error": None, "handle": None}


def rebuilt(base: type[nn.Module], kind: str) -> nn.Module:
    """An empty attached module: what unpickling and deepcopy start from."""
    made = attached_class(base, KINDS[kind])
    return made.__new__(made)


class Attached(nn.Module):
    """What every attached module adds to its class."""

    _feedback: Link
    _feedback_base: type[nn.Module]
    _feedback_kind: str

    if TYPE_CHECKING:  # the attributes of the class it is mixed into

        def __getattr__(self, name: str) -> Any: ...

    def __reduce_ex__(self, protocol):
        """The class is made anew where the module is unpickled."""
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__.copy()
        return rebuilt, (self._feedback_base, self._feedback_kind), state

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs):
        """A checkpoint of the plain model loads strictly too: ω stay, and learn the new θ at the next step."""
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        for key in missing:
            if is_feedback(key):
                self._feedback.stale = True
            else:
                missing_keys.append(key)

    def _sent(self, weight: Tensor, name: str) -> Tensor:
        """B of this module: what its rule makes of θ and the ω called ``name``."""
        omega: Any = getattr(self, name, None)
        rule = self._feedback.rule
        if not rule.own_feedback:
            return rule.sent(weight, weight)
        if omega is None:
            raise RuntimeError(
                f"{self._get_name()} has no feedback weights, because its input needed no gradient in the example inputs, but "
                "now it does; attach again with inputs like these, or without any."
            )
        return rule.sent(weight, omega)

    def _direct(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        """y = A_θ x, made without the graph of x, joined to it by direct feedback."""
        omega = getattr(self, f"direct_{name}")
        if not torch.compiler.is_compiling():
            return function.direct(y, x, omega, self._feedback)
        raise RuntimeError(
            "direct feedback alignment hands the output's error around the graph, which torch.compile cannot; run it eagerly."
        )

    def _passes(self, x: Tensor) -> bool:
        """Whether this call is the plain module's: nothing is sent back, or backpropagation is asked for."""
        return self._feedback.exact or not (torch.is_grad_enabled() and x.requires_grad)


def links_of(model: nn.Module) -> list[Link]:
    """What the attached modules of a model share: one link, or none where nothing is attached."""
    return list({id(m._feedback): m._feedback for m in model.modules() if isinstance(m, Attached)}.values())


@contextmanager
def backpropagating(model: nn.Module) -> Iterator[None]:
    """Within it the model's forward and backward are the plain model's, attached or not."""
    links = links_of(model)
    before = [link.exact for link in links]
    for link in links:
        link.exact = True
    try:
        yield
    finally:
        for link, exact in zip(links, before, strict=True):
            link.exact = exact


class Broadcast:
    """A forward hook of the last map: its output's error is kept for all maps before it."""

    def __init__(self, link: Link):
        """For the modules that share ``link``."""
        self.link = link

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The output, watched; the error of an earlier pass is forgotten."""
        self.link.error = None
        if self.link.exact or not torch.is_grad_enabled():
            return output
        if isinstance(output, tuple):
            return function.error(output[0], self.link), *output[1:]
        return function.error(output, self.link)


class AttachedLinear(Attached):
    """x θᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            y = F.linear(input.detach(), weight, self.bias)
            return self._direct(y, input, "feedback_weight")
        return function.linear(input, weight, self.bias, self._sent(weight, "feedback_weight"))


class AttachedConv1D(Attached):
    """The transposed linear map of ``transformers``: θ is (inputs, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(x):
            return super().forward(x)
        weight = self.weight
        if self._feedback.rule.direct:
            y = F.linear(x.detach(), weight.T, self.bias)
            return self._direct(y, x, "feedback_weight")
        return function.linear(x, weight.T, self.bias, self._sent(weight, "feedback_weight").T)


class AttachedConvolution(Attached):
    """``Conv1d``, ``Conv2d`` and ``Conv3d``, every padding mode."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            y = self._conv_forward(input.detach(), weight, self.bias)
            return self._direct(y, input, "feedback_weight")
        dims = len(self.kernel_size)
        x = input if input.dim() == dims + 2 else input.unsqueeze(0)
        x, padding = padded(self, x)
        geometry = (self.stride, padding, self.dilation, False, (0,) * dims, self.groups)
        y = function.convolution(x, weight, self.bias, self._sent(weight, "feedback_weight"), *geometry)
        return y if input.dim() == dims + 2 else y.squeeze(0)


def padded(conv: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x and the symmetric zero padding still to be made by the convolution; other paddings are made here, by autograd."""
    none = (0,) * len(conv.kernel_size)
    if conv.padding_mode != "zeros":
        return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), none
    if conv.padding == "valid":
        return x, none
    if conv.padding != "same":
        return x, conv.padding
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if all(size % 2 == 0 for size in total):
        return x, tuple(size // 2 for size in total)
    return F.pad(x, [side for size in reversed(total) for side in (size // 2, size - size // 2)]), none


class AttachedTransposedConvolution(Attached):
    """``ConvTranspose1d``, ``ConvTranspose2d`` and ``ConvTranspose3d``."""

    def forward(self, input: Tensor, output_size=None) -> Tensor:
        """As the plain module."""
        if self._passes(input):
            return super().forward(input, output_size)
        weight = self.weight
        if self._feedback.rule.direct:
            y = super().forward(input.detach(), output_size)
            return self._direct(y, input, "feedback_weight")
        dims = len(self.kernel_size)
        extra = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation)
        x = input if input.dim() == dims + 2 else input.unsqueeze(0)
        geometry = (self.stride, self.padding, self.dilation, True, tuple(extra), self.groups)
        y = function.convolution(x, weight, self.bias, self._sent(weight, "feedback_weight"), *geometry)
        return y if input.dim() == dims + 2 else y.squeeze(0)


class AttachedRegistered(Attached):
    """A user's own bilinear map, as ``targetprop.register`` told it."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module; the shape of its input is kept for the probes."""
        if not torch.compiler.is_compiling():
            self._feedback_shape = tuple(input.shape[1:])
        if self._passes(input):
            return super().forward(input)
        weight = self.weight
        if self._feedback.rule.direct:
            return self._direct(super().forward(input.detach()), input, "feedback_weight")
        own = map_of(self)
        y = function.bilinear(input, weight, self._sent(weight, "feedback_weight"), own.function)  # type: ignore[arg-type]
        bias = getattr(self, "bias", None)
        return y if bias is None else y + along(bias.to(y.dtype), own.bias_dim, y.dim())


def map_of(module: Attached) -> AutogradMap:
    """The registered map of an attached module."""
    return MAPS[registered(module)](module)  # type: ignore[index,return-value]


class AttachedAttention(Attached):
    """``nn.MultiheadAttention``: its three in-projections are maps, its out-projection is an attached ``Linear``."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As the plain module: softmax(QKᵀ/√d) V over heads, with autograd's derivative."""
        if self._feedback.exact or not torch.is_grad_enabled():
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if any(x.is_nested for x in (query, key, value)):
            raise TypeError("MultiheadAttention with feedback takes padded tensors, got nested ones; pad them to one length.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        length, batch, _ = query.shape
        heads, size = self.num_heads, self.embed_dim // self.num_heads

        key_padding_mask = F._canonical_mask(
            key_padding_mask, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", query.dtype
        )
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None
        else:
            attn_mask = F._canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, False)
            is_causal = is_causal and key_padding_mask is None
        if attn_mask is not None and attn_mask.dim() == 2:
            attn_mask = attn_mask.unsqueeze(0)

        q, k, v = (self._project(i, x) for i, x in enumerate((query, key, value)))
        added = 0
        if self.bias_k is not None:
            k, v, added = (
                torch.cat([k, self.bias_k.repeat(1, batch, 1)]), torch.cat([v, self.bias_v.repeat(1, batch, 1)]), 1
            )  # fmt: skip
        q = q.reshape(length, batch * heads, size).transpose(0, 1)
        k, v = (x.reshape(x.shape[0], batch * heads, size).transpose(0, 1) for x in (k, v))
        if self.add_zero_attn:
            zero = (batch * heads, 1, size)
            k, v, added = torch.cat([k, k.new_zeros(zero)], 1), torch.cat([v, v.new_zeros(zero)], 1), added + 1
        if added:
            attn_mask = None if attn_mask is None else F.pad(attn_mask, (0, added))
            key_padding_mask = None if key_padding_mask is None else F.pad(key_padding_mask, (0, added))
        if key_padding_mask is not None:
            spread = key_padding_mask.view(batch, 1, 1, -1).expand(-1, heads, -1, -1).reshape(batch * heads, 1, -1)
            attn_mask = spread if attn_mask is None else attn_mask + spread
        dropout = self.dropout if self.training else 0.0

        weights = None
        if need_weights:
            scaled = q * math.sqrt(1.0 / size)
            scores = torch.bmm(scaled, k.mT) if attn_mask is None else torch.baddbmm(attn_mask, scaled, k.mT)
            weights = F.softmax(scores, -1)
            if dropout > 0.0:
                weights = F.dropout(weights, dropout)
            out = torch.bmm(weights, v).transpose(0, 1).reshape(length, batch, self.embed_dim)
            weights = weights.view(batch, heads, length, -1)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            if attn_mask is not None:
                attn_mask = attn_mask.unsqueeze(0) if attn_mask.shape[0] == 1 else attn_mask.view(batch, heads, -1, k.shape[1])
            q, k, v = (x.view(batch, heads, -1, size) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
            out = out.permute(2, 0, 1, 3).reshape(length, batch, self.embed_dim)
        if self._feedback.direct and self.batch_first and batched:  # an error finds its sample in the first dimension
            return self.out_proj(out.transpose(0, 1)), weights
        out = self.out_proj(out)  # laid out as the plain module has it, by which a dropout that follows draws its numbers
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def _project(self, index: int, x: Tensor) -> Tensor:
        """The in-projection number ``index`` of q, k and v."""
        part = slice(index * self.embed_dim, (index + 1) * self.embed_dim)
        letter = "qkv"[index]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[part]
        packed = self.in_proj_weight is not None
        weight = self.in_proj_weight[part] if packed else getattr(self, f"{letter}_proj_weight")
        if not x.requires_grad:
            return F.linear(x, weight, bias)
        if self._feedback.rule.direct:
            x = x.transpose(0, 1) if self.batch_first else x  # as the user's model lays them, for an error to find its sample
            y = self._direct(F.linear(x.detach(), weight, bias), x, f"{letter}_proj_feedback_weight")
            return y.transpose(0, 1) if self.batch_first else y
        if not packed:
            return function.linear(x, weight, bias, self._sent(weight, f"{letter}_proj_feedback_weight"))
        return function.linear(x, weight, bias, self._sent(self.in_proj_weight, "in_proj_feedback_weight")[part])


class AttachedNorm(Attached):
    """A normalisation whose gain γ sends e down through feedback gains of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module, γ and β applied apart."""
        if self._passes(input) or self.weight is None:
            return super().forward(input)
        weight, bias = self.weight, getattr(self, "bias", None)
        with without_affine(self):
            normalised = super().forward(input)
        if isinstance(self, (nn.LayerNorm, nn.RMSNorm)):
            shape = self.normalized_shape
        else:
            axis = input.dim() - self._feedback_positions(input)
            shape = [1] * axis + [-1] + [1] * (input.dim() - axis - 1)
        shaped = [1] * (input.dim() - len(shape)) + list(shape)
        y = function.gain(normalised, weight.view(shaped), self._sent(weight, "feedback_gain").view(shaped))
        return y if bias is None else y + bias.view(shaped)

    def _feedback_positions(self, input: Tensor) -> int:
        """Dimensions from the channels to the last: instance norms take an unbatched input too."""
        if isinstance(self, nn.modules.instancenorm._InstanceNorm):
            return self._get_no_batch_dim()
        return input.dim() - 1


class without_affine:
    """A context in which a normalisation has neither gain nor shift, so that its forward only normalises."""

    def __init__(self, module: nn.Module):
        """For ``module``."""
        self.module = module

    def __enter__(self) -> None:
        """Hide them."""
        parameters = self.module._parameters
        self.kept = {name: parameters[name] for name in ("weight", "bias") if name in parameters}
        for name in self.kept:
            parameters[name] = None

    def __exit__(self, *error: object) -> None:
        """Show them again."""
        self.module._parameters.update(self.kept)


class AttachedActivation(Attached):
    """An activation that sends the difference of its feedback activation at a finite nudge."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain module."""
        beta = self._feedback.beta
        if self._passes(input) or beta is None:
            return super().forward(input)
        return function.difference(input, ACTIVATIONS[self._feedback_base](self), beta)


@dataclass(frozen=True)
class Layout:
    r"""Where one map of a module keeps its weight, and how that reads as matrices (groups, outputs, d).

    Attributes:
        weight: name of θ.
        feedback: name of ω.
        form: how θ lies: ``"dense"`` (outputs, inputs), ``"transposed"`` (inputs, outputs), ``"kernel"`` (outputs,
            inputs / groups, \*kernel), ``"transposed kernel"`` (inputs, outputs / groups, \*kernel: one position of the
            input answers with a whole kernel), ``"diagonal"`` (gains, as many maps of one input), ``"field"`` (any).
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
        if self.form == "transposed":
            return w.T.unsqueeze(0)
        if self.form == "kernel":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1)
        if self.form == "transposed kernel":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1).mT
        return w.reshape(-1, 1, 1)

    def restore(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """The array of ``shape`` whose matrices these are."""
        if self.form == "dense":
            return matrices[0]
        if self.form == "transposed":
            return matrices[0].T
        return (matrices.mT if self.form == "transposed kernel" else matrices).reshape(tuple(shape))


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
    mixin: type[Attached]
    layouts: Callable[[Any, bool], list[Layout]]


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
)  # fmt: skip

KINDS = {
    kind.name: kind
    for kind in (
        Kind("linear", (nn.Linear,), AttachedLinear, lambda m, direct: [Layout()]),
        Kind("convolution", CONVOLUTIONS, AttachedConvolution, lambda m, direct: [Layout(form="kernel", groups=m.groups)]),
        Kind(
            "transposed",
            TRANSPOSED,
            AttachedTransposedConvolution,
            lambda m, direct: [Layout(form="transposed kernel", groups=m.groups)],
        ),
        Kind("attention", (nn.MultiheadAttention,), AttachedAttention, projections),
        Kind("conv1d", (), AttachedConv1D, lambda m, direct: [Layout(form="transposed")]),
        Kind("registered", (), AttachedRegistered, lambda m, direct: [Layout(form="field")]),
        Kind("norm", NORMS, AttachedNorm, lambda m, direct: [Layout(feedback="feedback_gain", form="diagonal")]),
        Kind("activation", tuple(set(ACTIVATIONS) - {nn.Identity}), AttachedActivation, lambda m, direct: []),
    )
}

REFUSED: dict[type[nn.Module], str] = {
    nn.RNNBase: "its fused kernel multiplies by θᵀ; write the recurrence with cells of nn.Linear",
    nn.RNNCellBase: "its fused kernel multiplies by θᵀ; write the cell with nn.Linear",
    nn.Bilinear: "it multiplies two signals and θ at once; write it as nn.Linear of their outer product",
}


def registered(module: nn.Module) -> type[nn.Module] | None:
    """The type under which ``targetprop.register`` knows what the module computes, or None."""
    if isinstance(module, Attached):
        return registered_base(module._feedback_base)
    return None if "forward" in module.__dict__ else registered_base(type(module))


def registered_base(own: type[nn.Module]) -> type[nn.Module] | None:
    """The registered class among the bases of ``own`` whose ``forward`` it has."""
    known = (base for base in own.__mro__ if base in MAPS and base not in (nn.Conv2d, nn.Linear))
    return next((base for base in known if own.forward is base.forward), None)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module; None for other modules, and for those that compute something of their own."""
    if isinstance(module, Attached):
        return KINDS[module._feedback_kind]
    own = type(module)
    if own.__name__ == "Conv1D" and own.__module__ == "transformers.pytorch_utils":
        return KINDS["conv1d"]
    for kind in KINDS.values():
        for known in kind.types:
            if isinstance(module, known) and inherits(module, known):
                return kind
    return KINDS["registered"] if registered(module) else None


def inherits(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether the module computes what class ``known`` does."""
    methods = [name for name in ("forward", "_conv_forward", "_output_padding") if hasattr(known, name)]
    own = type(module)
    return "forward" not in module.__dict__ and all(getattr(own, name) is getattr(known, name) for name in methods)


_classes: dict[tuple[type[nn.Module], str], type[Attached]] = {}


def attached_class(base: type[nn.Module], kind: Kind) -> type[Attached]:
    """The subclass of ``base`` that runs through ω; made once, named as ``base``."""
    key = (base, kind.name)
    if key not in _classes:
        names = {
            "_feedback_base": base,
            "_feedback_kind": kind.name,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
        }
        _classes[key] = type(base.__name__, (kind.mixin, base), names)
    return _classes[key]
