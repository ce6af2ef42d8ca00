"""How well feedback and updates align: angles, relative distances and the Jacobian mismatch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from targetprop.algorithms import Algorithm, AttachedAlgorithm
from targetprop.algorithms.attached import logits_of, named_by_layer
from targetprop.analysis.measures import angle, distance, size
from targetprop.analysis.refusals import arguments_of, refuse_foreign
from targetprop.attach import Feedback
from targetprop.attach.coverage import unchanged
from targetprop.attach.link import backpropagating
from targetprop.attach.sites import Site
from targetprop.feedback.solver import noise_like
from targetprop.laboratory.layers import Layer, Trace
from targetprop.laboratory.pairing import Network
from targetprop.maps import is_feedback
from targetprop.ranks import ALONE, Group


@dataclass(frozen=True)
class LayerAlignment:
    """Alignment of one layer: of arrays, and of Jacobians (``mismatch``); None where there is none.

    Attributes:
        update_angle: between the algorithm's update of θ and the backprop gradient, degrees.
        update_distance: ‖∇_BP − ∇‖/‖∇_BP‖.
        weight_angle: between ω and θᵀ, degrees; of attached maps between θ and B, what their rule
            sends through, which is ω for most.
        weight_distance: ‖θ − ωᵀ‖/‖θ‖, or ‖θ − B‖/‖θ‖.
        mismatch: ‖J_G − J_Fᵀ‖_F/‖J_F‖_F; of attached maps ``Feedback.mismatch``, the largest of
            one θ.
        update_size: ‖∇‖/‖∇_BP‖.
    """

    update_angle: float
    update_distance: float
    weight_angle: float | None = None
    weight_distance: float | None = None
    mismatch: float | None = None
    update_size: float | None = None


@torch.no_grad()
def jacobian_mismatch(
    layer: Layer, trace: Trace, probes: int = 4, generator: Generator | None = None
) -> float:
    """‖J_G − J_Fᵀ‖_F/‖J_F‖_F of a layer, the norms over the whole batch, by probes of its output.

    For white η, E‖(J_G − J_Fᵀ)η‖² is the squared Frobenius norm, so no Jacobian is formed. J_G η is
    the forward-mode derivative of the feedback actually used, mirror or matched, at s; J_Fᵀη is the
    exact transpose with the clean pool winners.

    Args:
        layer: a layer with feedback.
        trace: its clean pass.
        probes: of noise, per sample of the batch; the standard error falls as one over their root.
        generator: of the noise; default a fixed seed.
    """
    generator = generator or torch.Generator(trace.input.device).manual_seed(0)
    stage, shape = layer.stage, trace.input.shape
    error = norm = 0.0
    for _ in range(probes):
        h = noise_like(trace.output, generator)
        zero = torch.zeros_like(h)
        change = partial(stage.difference, trace.saved, trace.kept)
        lifted = torch.func.jvp(change, (zero,), (h,))[1]
        forward = layer.map.transpose(stage.vjp(trace.saved, h), layer.theta, shape)
        error += (layer.feed_back(lifted, shape) - forward).square().sum().item()
        norm += forward.square().sum().item()
    return (error / norm) ** 0.5 if norm > 0 else float("nan")


@contextmanager
def restored(net: Network, algo: Algorithm) -> Iterator[None]:
    """Put weights, gradients and the algorithm's memory back as they were."""
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    loss = algo.loss.parameters() if isinstance(algo.loss, nn.Module) else ()
    gradients = [(p, p.grad) for p in (*net.parameters(), *loss)]
    memory = copy.deepcopy(algo.state_dict())
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in net.state_dict().items():
                value.copy_(weights[name])
        for parameter, gradient in gradients:
            parameter.grad = gradient
        algo.load_state_dict(memory)


def backprop_gradients(net: Network, algo: Algorithm, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of ``algo``'s loss on every layer's θ, by autograd."""
    statistics = [(buffer, buffer.clone()) for buffer in net.buffers()]
    loss = algo.loss(net(x), y)
    for buffer, value in statistics:  # a measurement leaves running statistics as they were
        buffer.copy_(value)
    thetas = [layer.theta for layer in net.layers]
    learning = [theta for theta in thetas if theta.requires_grad]
    found = dict(zip(map(id, learning), torch.autograd.grad(loss, learning), strict=True))
    gradients = [found.get(id(theta), torch.zeros_like(theta)) for theta in thetas]  # 0: frozen
    algo.ranks.data.mean_(*gradients)
    return gradients


def update_alignment(updates: list[Tensor], gradients: list[Tensor]) -> list[tuple[float, float]]:
    """(angle in degrees, relative distance) of every update to its gradient."""
    return [
        (angle(g, u).item(), distance(g, u).item()) for u, g in zip(updates, gradients, strict=True)
    ]


def standing_updates(net: Network) -> list[Tensor]:
    """Every layer's ``.grad`` of θ as it stands; zeros where there is none."""
    return [
        torch.zeros_like(la.theta) if la.theta.grad is None else la.theta.grad for la in net.layers
    ]


def alignment_of_grad(
    net: Network, algo: Algorithm, x: Tensor, y: Tensor
) -> list[tuple[float, float]]:
    """(degrees, relative distance) of each layer's ``.grad``, as it stands, to backprop's."""
    return update_alignment(standing_updates(net), backprop_gradients(net, algo, x, y))


def alignment(
    net: Any, algo: Any, x: Any, y: Tensor | None = None, probes: int = 4
) -> dict[str, LayerAlignment]:
    """How updates align with the backprop gradient, feedback with forward weights. Changes nothing.

    ``alignment(net, algo, x, y)``, net made by ``targetprop.pair``: every layer on this batch, at
    the update that ``algo.backward(x, y)`` would make; ``probes`` samples of noise per sample
    measure the Jacobian mismatch.

    ``alignment(model, feedback, loss_fn)``, model attached by ``targetprop.attach``: every
    parameter that learns, by name. ``loss_fn(model)``, or ``loss_fn()``, computes a loss with a
    graph; it is called twice, with the same random numbers and buffers, once through ω and once
    within ``feedback.exact()``. ``alignment(model, algo, x, y)``, model plain, takes algo's loss.

    Returns:
        per layer or parameter name, a :class:`LayerAlignment`.

    Raises:
        TypeError: the second argument is neither an algorithm nor a ``Feedback``, or ``loss_fn``
            cannot be called so.
        ValueError: the feedback is another model's.

    Example:
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        >>> x, y = torch.randn(32, 8), torch.randint(4, (32,))
        >>> feedback = tp.attach(model, x)
        >>> found = tp.analysis.alignment(model, feedback, lambda net: F.cross_entropy(net(x), y))
        >>> found["0.weight"].update_angle < 1  # degrees
        True
    """
    if isinstance(algo, Feedback):
        refuse_foreign(net, algo)
        loss_fn: Any = x if y is None else None
        return attached_alignment(net, algo, loss_fn)
    if isinstance(algo, AttachedAlgorithm) and y is not None:
        return algorithm_alignment(net, algo, x, y)
    if not isinstance(algo, Algorithm) or y is None:
        raise TypeError(
            "alignment takes (net, algorithm, x, y) or (model, feedback, loss_fn), "
            f"got {type(algo).__name__} as the second."
        )
    with restored(net, algo):
        algo.backward(x, y)
        updates, wanted = standing_updates(net), backprop_gradients(net, algo, x, y)
        sizes = [size(g, u) for g, u in zip(wanted, updates, strict=True)]
        pairs = update_alignment(updates, wanted)
        with torch.no_grad():
            leaves = net.leaf_traces(net.trace(x)[1])
        result = {}
        for name, (layer, trace), pair, ratio in zip(net.names, leaves, pairs, sizes, strict=True):
            if not layer.has_feedback:
                result[name] = LayerAlignment(*pair, update_size=ratio)
                continue
            theta, omega = layer.theta.detach(), layer.omega.detach()
            mismatch = jacobian_mismatch(layer, trace, probes)
            weights = angle(theta, omega).item(), distance(theta, omega).item()
            result[name] = LayerAlignment(*pair, *weights, mismatch, ratio)
    return result


def attached_alignment(
    model: nn.Module, feedback: Feedback | None, loss_fn: Callable[..., Any], peers: Group = ALONE
) -> dict[str, LayerAlignment]:
    """See :func:`alignment`: of attached or plain models; ``peers`` have the rest of the batch.

    Raises:
        TypeError: ``loss_fn`` makes no loss with a graph.
    """
    learned = {
        name: p for name, p in model.named_parameters() if p.requires_grad and not is_feedback(name)
    }
    arguments = arguments_of(loss_fn, model)

    def gradients() -> list[Tensor]:
        with unchanged(model), torch.enable_grad():
            loss = loss_fn(*arguments)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise TypeError(
                    "loss_fn must compute a loss with a graph: "
                    "a scalar tensor that needs a gradient."
                )
            found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
        full = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(learned.values(), found, strict=True)
        ]
        peers.mean_(*full)
        return full

    if not learned:
        return {}
    updates = gradients()
    with backpropagating(model):
        wanted = gradients()
    sites: dict[int, list[Site]] = {}
    indirect = feedback if feedback and not feedback.rule.direct else None
    found = indirect.mismatch() if indirect else {}
    for site in indirect.sites if indirect and indirect.rule.own_feedback else ():
        if site.theta is not None and site.omega is not None:
            sites.setdefault(id(site.theta), []).append(site)
    result, pairs = {}, update_alignment(updates, wanted)
    for i, (name, parameter) in enumerate(learned.items()):
        relative, maps = size(wanted[i], updates[i]), sites.get(id(parameter), [])
        if not maps:
            result[name] = LayerAlignment(*pairs[i], update_size=relative)
            continue
        theta, omega = parameter.detach(), maps[0].omega.detach()
        sent = indirect.rule.sent(theta, omega) if indirect else omega
        weights = angle(theta, sent).item(), distance(theta, sent).item()
        worst = max(found[site.name] for site in maps)
        result[name] = LayerAlignment(*pairs[i], *weights, worst, relative)
    return result


def algorithm_alignment(
    net: nn.Module, algo: AttachedAlgorithm, x: Tensor, y: Tensor
) -> dict[str, LayerAlignment]:
    """See :func:`alignment`: the case of an algorithm on a plain module."""
    algo.ready(x)
    loss = partial(batch_loss, algo=algo, x=x, y=y)
    return named_by_layer(net, attached_alignment(net, algo.feedback, loss, algo.ranks.data))


def batch_loss(net: nn.Module, algo: AttachedAlgorithm, x: Tensor, y: Tensor) -> Tensor:
    """What ``algo.backward(x, y)`` differentiates; backpropagation's goes through θ in any case."""
    with backpropagating(net) if algo.rule is None else nullcontext():
        return algo.loss(logits_of(net(x), net), y)


def attached_angles(
    net: nn.Module, algo: AttachedAlgorithm, x: Tensor, y: Tensor
) -> dict[str, float]:
    """Angle of each weight's update to backprop's gradient, on plain modules; 0 for backprop."""
    weights = {
        name: p
        for name, p in net.named_parameters()
        if p.requires_grad and p.dim() > 1 and not is_feedback(name)
    }
    weights = list(named_by_layer(net, weights))
    if algo.rule is None:
        return dict.fromkeys(weights, 0.0)
    found = algorithm_alignment(net, algo, x, y)
    return {name: found[name].update_angle for name in weights}
