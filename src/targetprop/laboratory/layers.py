"""Layers that run both ways: a forward map, a stage, and a feedback map with weights of its own.

A :class:`Layer` computes s = F(x) = S(A_θ x + b) and feeds back G(t) = A_ωᵀ R(t) + b_ω. ω is stored
in the layout of θ; if R is the matched feedback of S, the Jacobian matching condition J_G = J_Fᵀ
(Ernoult et al. 2022) then reads ω = θ.

Nothing is remembered between the two passes: ``trace`` returns what feedback needs as a value.
Every product here is an explicit operator on tensors without a graph; only ``forward`` is
differentiable by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.laboratory.activations import Feedback
from targetprop.laboratory.normalisation import BatchNorm, ParameterGradients
from targetprop.laboratory.stages import Stage, Step
from targetprop.maps import LinearMap, Reduced, along, is_feedback, sum_to_bias


@dataclass(frozen=True)
class Trace:
    """One pass of a batch through a layer.

    Attributes:
        layer: the layer.
        input: x = sⁿ⁻¹.
        kept: s = sⁿ; None for a term of a sum, which no pass down reads.
        saved: what the stage saved of this pass.
    """

    layer: Layer
    input: Tensor
    kept: Tensor | None
    saved: tuple

    @property
    def output(self) -> Tensor:
        """s = sⁿ, made again where it was not kept."""
        if self.kept is not None:
            return self.kept
        return self.layer.stage.forward(
            self.layer.map.apply(self.input, self.layer.theta, self.layer.bias)
        )[0]


Carry = Callable[["Layer", Trace, Tensor], Tensor]
"""(layer, its trace, difference d at its output) ↦ difference at its input."""


Learn = Callable[["Layer", Trace, Tensor], Any]
"""(layer, its trace, difference d at its output) ↦ what the layer learns from it."""


Gradients = tuple[Tensor, Tensor | None, ParameterGradients]
"""On θ, on b, where the layer has one, and on the parameters of its batch normalisation."""


class Layer(nn.Module):
    """A linear map, its stage and its feedback.

    Attributes:
        forward_map: the user's own module, ``nn.Conv2d``, ``nn.Linear``, ..., that holds θ and b,
            and ω and b_ω too, as ``feedback_weight`` and ``feedback_bias``, where
            ``targetprop.attach`` looks for them.
        has_feedback: not so of a layer that reads the network's input, which needs no target.
        map: the products with A_w.
        stage: what follows the map.
        norms: the batch normalisations among its steps.
    """

    def __init__(
        self,
        module: nn.Module,
        linear: LinearMap,
        steps: Sequence[Step] = (),
        kind: Feedback = "matched",
        feedback=True,
    ):
        """Pair ``module``, ``linear`` plus a bias, with feedback of ``kind`` where ``feedback``."""
        super().__init__()
        self.forward_map: Any = module
        self.map = linear
        self.stage = Stage(tuple(steps), kind)
        self.norms = nn.ModuleList(step.module for step in steps if isinstance(step, BatchNorm))
        self.has_feedback = feedback
        if feedback:
            draw_feedback(module)

    @property
    def theta(self) -> nn.Parameter:
        """θ, the forward weight."""
        return self.forward_map.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """b, the forward bias."""
        return self.forward_map.bias

    @property
    def omega(self) -> nn.Parameter:
        """ω, the feedback weight.

        Raises:
            ValueError: for a layer that reads the network's input.
        """
        if not self.has_feedback:
            raise ValueError("a layer that reads the network's input has no feedback weight.")
        return self.forward_map.feedback_weight

    @property
    def feedback_bias(self) -> nn.Parameter | None:
        """b_ω, where there is one; it cancels in differences."""
        return getattr(self.forward_map, "feedback_bias", None) if self.has_feedback else None

    def forward_parameters(self) -> Iterator[nn.Parameter]:
        """θ and b, and the parameters of its batch normalisation."""
        yield from (p for name, p in self.forward_map.named_parameters() if not is_feedback(name))
        yield from self.norms.parameters()

    def feedback_parameters(self) -> Iterator[nn.Parameter]:
        """ω and b_ω, where it has them."""
        if self.has_feedback:
            yield self.omega
            if self.feedback_bias is not None:
                yield self.feedback_bias

    def forward(self, x: Tensor) -> Tensor:
        """F(x), differentiable; calls the module: an attached one sends back what its rule says."""
        if isinstance(self.map, Reduced):
            with torch.autocast(x.device.type, self.map.dtype):
                c = self.forward_map(x)
        else:
            c = self.forward_map(x)
        s, saved = self.stage.forward(c)
        self.stage.observe(saved)
        return s

    def trace(self, x: Tensor) -> Trace:
        """F(x) with all that feedback and learning need of this pass."""
        s, saved = self.stage.forward(self.map.apply(x, self.theta, self.bias))
        return Trace(self, x, s, saved)

    def feed_back(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        """A_ωᵀ z, shaped ``shape``; the bias b_ω cancels in differences and is left out."""
        return self.map.transpose(z, self.omega, shape)

    def respond(self, e: Tensor) -> Tensor:
        """A_θ e: how the pre-activation responds to a perturbation e of the input, of any size."""
        return self.map.apply(e, self.theta)

    def difference(self, trace: Trace, d: Tensor) -> Tensor:
        """G(s + d) − G(s), difference correction (Lee et al. 2015), by one map for both terms."""
        return self.feed_back(self.stage.difference(trace.saved, trace.kept, d), trace.input.shape)

    def reconstruct(self, trace: Trace, t: Tensor) -> Tensor:
        """G(t) = A_ωᵀ R(t) + b_ω."""
        r = self.feed_back(self.stage.lift(trace.saved, t), trace.input.shape)
        b = self.feedback_bias
        # A feedback bias has an entry per input channel: conv (B, C, ...), linear (..., C) alike.
        return r if b is None else r + along(b, self.map.bias_dim, r.dim())

    def gradients(self, trace: Trace, e: Tensor, scale: float = 1.0) -> Gradients:
        """``scale`` times the gradient of ⟨e, F(x)⟩ on θ and b, x fixed.

        With e = t − s and scale = −1/(βB) this is the gradient of the batch mean of the layer's
        local loss ½‖F(x) − t‖² (Ernoult et al. 2022), over β.
        """
        learned: ParameterGradients = []
        e = self.stage.vjp(trace.saved, e, learned)
        bias = None if self.bias is None else sum_to_bias(e, self.map.bias_dim) * scale
        own = [(parameter, gradient * scale) for parameter, gradient in learned]
        return self.map.correlate(e, trace.input, self.theta.shape).mul_(scale), bias, own

    def accumulate(self, gradients: Gradients) -> None:
        """Add ``gradients`` to ``.grad`` of θ and b."""
        gradient, bias, own = gradients
        if self.theta.requires_grad:
            accumulate(self.theta, gradient)
        if self.bias is not None and bias is not None and self.bias.requires_grad:
            accumulate(self.bias, bias)
        for parameter, value in own:
            if parameter.requires_grad:
                accumulate(parameter, value)

    def enter(self, trace: Trace, d: Tensor, e: Tensor) -> tuple[Trace, Tensor, Tensor]:
        """As they are: a layer takes its own stage's part when it learns and when it carries."""
        return trace, d, e

    def descend(
        self, trace: Trace, d: Tensor, e: Tensor, carry: Carry, learn: Learn
    ) -> tuple[list[Any], Tensor | None]:
        """What the layer learned from e; the difference that d becomes at its input, if needed."""
        learned = learn(self, trace, e)
        return [learned], carry(self, trace, d) if self.has_feedback else None

    def leaves(self) -> Iterator[Layer]:
        """The layer itself."""
        yield self

    def leaf_traces(self, trace: Trace) -> Iterator[tuple[Layer, Trace]]:
        """The layer itself with its trace."""
        yield self, trace


def draw_feedback(module: nn.Module) -> None:
    """Give a module ω, in the layout of θ, and b_ω, drawn as PyTorch draws the paper's modules.

    Those it has stay. No gradient of autograd ever reaches them, as with ``targetprop.attach``.
    """
    if "feedback_weight" in module._parameters:
        return
    weight: Any = module.weight
    fan_in, biases = feedback_sizes(module)
    bound = 1 / math.sqrt(fan_in)
    module.feedback_weight = nn.Parameter(
        torch.empty_like(weight.detach()).uniform_(-bound, bound), False
    )
    if biases:
        module.feedback_bias = nn.Parameter(weight.new_empty(biases).uniform_(-bound, bound), False)


def feedback_sizes(module: nn.Module) -> tuple[int, int]:
    """(fan-in, number of biases) in PyTorch of the module that the paper pairs with ``module``.

    ``nn.Linear`` is paired with ``nn.Linear`` the other way round, a convolution with its
    transpose, whose fan-in PyTorch counts as (input channels / groups)·k². Other types take the
    fan-in of their own weight and no feedback bias.
    """
    weight: Any = module.weight
    biased = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features if biased else 0
    fan_in = weight[0].numel()
    return fan_in, module.in_channels if biased and isinstance(module, nn.Conv2d) else 0


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add ``gradient`` to ``parameter.grad``, as ``Tensor.backward`` does."""
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
    else:
        parameter.grad += gradient
