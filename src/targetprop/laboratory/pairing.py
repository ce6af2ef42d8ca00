"""From an ``nn.Sequential`` to a :class:`Network` whose every layer has a feedback path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from targetprop import maps
from targetprop.laboratory import activations, normalisation, pooling
from targetprop.laboratory.activations import Feedback
from targetprop.laboratory.layers import Carry, Layer, Learn, Trace
from targetprop.laboratory.refusals import PairingError, refuse_hooked, refuse_norm, refuse_reused
from targetprop.laboratory.residual import Residual, ResidualTrace, descend, trace_chain
from targetprop.laboratory.stages import Stage, Step
from targetprop.models.plain import Sum


class Network(nn.Module):
    """A chain of layers and residual blocks: forward by ``net(x)``, both ways by explicit traces.

    Attributes:
        blocks: the chain.
        entry: steps before the first linear map, such as flattening: the input has no target.
        layers: every linear map's :class:`Layer` from input to output, branches before shortcuts.
        names: a name per layer, such as ``conv_0`` or ``fc_3``.
    """

    def __init__(
        self,
        blocks: Sequence[Layer | Residual],
        entry: Sequence[Step] = (),
        kind: Feedback = "matched",
    ):
        """Chain ``blocks`` behind the steps of ``entry``."""
        super().__init__()
        self.blocks: Any = nn.ModuleList(blocks)
        self.entry = Stage(tuple(entry), kind)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer from input to output."""
        return tuple(layer for block in self.blocks for layer in block.leaves())

    @property
    def names(self) -> tuple[str, ...]:
        """A name per layer: its kind and its place."""
        kinds = {nn.Linear: "fc", nn.Conv2d: "conv"}
        types = [maps.plain_type(layer.forward_map) for layer in self.layers]
        return tuple(f"{kinds.get(t, t.__name__.lower())}_{i}" for i, t in enumerate(types))

    source: tuple[nn.Module, Feedback] | None = None
    """What ``pair`` made it of."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and copied as the module it was made of, which holds its feedback."""
        if self.source is None:
            return super().__reduce_ex__(protocol)
        modes = [module.training for module in self.modules()]
        dtype = next(
            (layer.map.dtype for layer in self.layers if isinstance(layer.map, maps.Reduced)), None
        )
        return rebuilt, self.source, {"modes": modes, "dtype": dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up modes and products of the network that was pickled."""
        if "modes" not in state:
            super().__setstate__(state)
            return
        for module, mode in zip(self.modules(), state["modes"], strict=True):
            module.training = mode
        if state["dtype"] is not None:
            self.compute_in(state["dtype"])

    def refuse_hooks(self) -> None:
        """Explicit passes never call the modules, so what is hooked to them would not happen.

        Raises:
            PairingError: a module has a hook, or a weight that something computes.
        """
        self.refuse_hooked_norms()
        for name, layer in zip(self.names, self.layers, strict=True):
            refuse_hooked(name, layer.forward_map)

    def refuse_hooked_norms(self) -> None:
        """The same of normalisations, which the network's own forward pass never calls either."""
        for name, layer in zip(self.names, self.layers, strict=True):
            for module in layer.norms:
                refuse_hooked(name, module)

    def forward_parameters(self) -> Iterator[nn.Parameter]:
        """θ and b of every layer, and the parameters of its batch normalisation."""
        for layer in self.layers:
            yield from layer.forward_parameters()

    def feedback_parameters(self) -> Iterator[nn.Parameter]:
        """ω and b_ω of every layer that has them."""
        for layer in self.layers:
            yield from layer.feedback_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """The logits, differentiable by autograd."""
        x, _ = self.entry.forward(x)
        for block in self.blocks:
            x = block(x)
        return at_least_float32(x)

    def trace(self, x: Tensor) -> tuple[Tensor, list[Trace | ResidualTrace]]:
        """The logits and every block's trace."""
        traces, logits = trace_chain(self.blocks, self.entry.forward(x)[0])
        for layer, trace in self.leaf_traces(traces):
            layer.stage.observe(trace.saved)
        return at_least_float32(logits), traces

    def compute_in(self, dtype: torch.dtype) -> Network:
        """Run the maps' products in ``dtype``, say bfloat16; weights, logits, loss keep theirs."""
        for layer in self.layers:
            inner = layer.map.inner if isinstance(layer.map, maps.Reduced) else layer.map
            layer.map = maps.Reduced(inner, dtype)
        return self

    def leaf_traces(self, traces: Sequence[Trace | ResidualTrace]) -> list[tuple[Layer, Trace]]:
        """Every layer with its trace, in the order of ``layers``."""
        pairs = zip(self.blocks, traces, strict=True)
        return [leaf for block, trace in pairs for leaf in block.leaf_traces(trace)]

    def descend(
        self,
        traces: list[Trace | ResidualTrace],
        d: Tensor,
        learn: Learn,
        carry: Carry = Layer.difference,
    ) -> list[Any]:
        """Carry the output's difference d = tᴺ − sᴺ down; ``traces`` is emptied.

        Returns:
            what ``learn`` made of (layer, trace, tⁿ − sⁿ), in the order of ``layers``. Each layer
            learns before the next difference is computed, so that one at a time is held.
        """
        return descend(list(self.blocks), traces, d, d, carry, learn)[0]


def at_least_float32(x: Tensor) -> Tensor:
    """x, widened to float32 if it is in a shorter format: a loss needs the digits."""
    return x.float() if torch.finfo(x.dtype).bits < 32 else x


def pair(module: nn.Module, feedback: Feedback = "matched") -> Network:
    """Pair every linear map of ``module`` with a feedback map of its own.

    Args:
        module: an ``nn.Sequential`` (nested ones are unrolled) of linear maps, activations, 2-d
            pooling, flattening and :class:`Sum` blocks. The network holds the given modules
            themselves, so their weights stay theirs.
        feedback: ``"matched"``, whose Jacobian can equal the forward layer's transpose exactly, or
            ``"mirror"``, the paper's.

    Raises:
        PairingError: a module has no feedback; the sentence names it and the remedy.

    Example:
        >>> net = pair(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 10)))
        >>> net.names
        ('fc_0', 'fc_1')
    """
    refuse_reused(module)
    entry, blocks = chain(unroll(module, ""), feedback, reads_input=True)
    if not blocks:
        raise PairingError(
            "the module holds no linear map; give it at least one nn.Linear or nn.Conv2d."
        )
    refuse_norm(entry, "the input")
    net = Network(blocks, entry, feedback)
    net.source = (module, feedback)
    net.refuse_hooks()
    return net


def rebuilt(module: nn.Module, feedback: Feedback) -> Network:
    """The network of an unpickled or copied module, which brings its feedback."""
    return pair(module, feedback)


def unroll(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of what a possibly nested ``nn.Sequential`` runs in turn."""
    if type(module) is nn.Sequential:
        # named_children would drop the second use of a module
        for name, child in module._modules.items():
            if child is not None:
                yield from unroll(child, f"{path}.{name}" if path else name)
    else:
        yield path, module


def chain(
    modules: Iterator[tuple[str, nn.Module]], kind: Feedback, reads_input: bool
) -> tuple[list[Step], list[Layer | Residual]]:
    """The steps before the first linear map, and the blocks."""
    groups: list[tuple[Any, list[Step]]] = [(None, [])]
    for path, module in modules:
        step = step_of(path, module)
        if step is None:
            groups.append(((path, module), []))
        else:
            groups[-1][1].append(step)
    blocks: list[Layer | Residual] = []
    for (path, module), steps in groups[1:]:
        blocks.append(block_of(path, module, steps, kind, reads_input and not blocks))
    return groups[0][1], blocks


def step_of(path: str, module: nn.Module) -> Step | None:
    """The stage step of an activation, pooling or flattening module; None for any other."""
    for known in (activations.MODULES, normalisation.MODULES):
        if type(module) in known:
            return known[type(module)](module)
    if type(module) in pooling.MODULES:
        try:
            return pooling.MODULES[type(module)](module)
        except ValueError as error:
            raise PairingError(f"layer '{path}' cannot be paired: {error}") from error
    return None


def block_of(
    path: str, module: nn.Module, steps: list[Step], kind: Feedback, reads_input: bool
) -> Layer | Residual:
    """The layer of a linear map or the block of a ``Sum``, with the steps that follow it."""
    if isinstance(module, Sum):
        arms = []
        for name in ("branch", "shortcut"):
            entry, blocks = chain(
                unroll(getattr(module, name), f"{path}.{name}"), kind, reads_input
            )
            if entry or any(isinstance(block, Residual) for block in blocks):
                raise PairingError(
                    f"layer '{path}.{name}' must be a chain of layers that starts with a linear "
                    "map."
                )
            arms.append(blocks)
        refuse_norm(steps, f"layer '{path}'")
        return Residual(arms[0], arms[1], steps, kind)
    if hasattr(module, "parametrizations"):
        refuse_hooked(path, module)
    linear = maps.map_of(module)
    if linear is None:
        own = type(module).__name__
        if not path:
            raise PairingError(
                f"explicit passes run through an nn.Sequential of layers, got {own}; give pair "
                "one, or keep the module as it is and train it by targetprop.attach(model)."
            )
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1:
            raise PairingError(
                f"layer '{path}' ({own}) has no feedback; register its linear map with "
                f"targetprop.register({own}, ...), leave it out, or use targetprop.attach(model), "
                "which takes any module."
            )
        raise PairingError(
            f"layer '{path}' ({own}) is nothing that explicit passes know; leave it out, or use "
            "targetprop.attach(model), which takes any module."
        )
    return Layer(module, linear, steps, kind, feedback=not reads_input)
