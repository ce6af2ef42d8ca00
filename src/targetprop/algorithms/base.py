"""What the algorithms share: the report, the loss and its error signal, the explicit state."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from targetprop.algorithms.losses import Loss, loss_function, refuse_sum
from targetprop.feedback import FeedbackReport
from targetprop.laboratory.layers import Gradients
from targetprop.laboratory.pairing import Network
from targetprop.properties import Row
from targetprop.ranks import Ranks
from targetprop.seeds import mixed
from targetprop.telling import warn

DataParallels = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Report:
    """What one call of ``backward`` saw.

    Attributes:
        loss: batch mean of the loss, a scalar without a graph.
        logits: sᴺ of the batch, or of this process's part of it, without a graph.
        feedback: what the solver did, per name of a layer whose feedback this process trains.
    """

    loss: Tensor
    logits: Tensor
    feedback: dict[str, FeedbackReport] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The loss and what was trained, not the arrays."""
        probed = [name for name, entry in self.feedback.items() if entry.iterations]
        return (
            f"Report(loss={self.loss.item():.4g}, logits {tuple(self.logits.shape)}, "
            f"feedback trained: {probed})"
        )


def several_processes() -> bool:
    """Whether torch.distributed runs with more than one process."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


class Algorithm(ABC):
    """A credit assignment rule: ``backward(x, y)`` stands where ``loss.backward()`` stood.

    Attributes:
        net: the network it trains.
        loss: the loss of (logits, y), a batch mean.
        ranks: the processes that train the network together.
    """

    splits_layers = False
    """Whether processes can share out the layers whose feedback learns."""

    papers: tuple[str, ...]
    """Keys of the papers it comes from, in ``citations.bib``."""

    solver: Any = None
    """How its feedback learns, where that can be chosen."""

    rows: tuple[Row, ...]
    """Of the table of algorithms; a class with some is in ``ALGORITHMS`` under its file's name."""

    elsewhere: type[Algorithm] | None = None
    """What the class's constructor makes on a module that is no network of ``targetprop.pair``."""

    any_module = False
    """Whether it trains any module, or networks of ``targetprop.pair`` alone."""

    def __new__(
        cls, net: Any = None, *args: Any, example_inputs: Sequence[Any] = (), **kwargs: Any
    ) -> Any:
        """See ``elsewhere``, which a class derived from another does not inherit."""
        other = vars(cls).get("elsewhere")
        if (
            other is None
            or isinstance(net, (Network, *DataParallels))
            or not isinstance(net, nn.Module)
        ):
            return super().__new__(cls)
        given = inspect.signature(cls.__init__).bind(None, net, *args, **kwargs).arguments
        settings = {name: value for name, value in given.items() if name not in ("self", "net")}
        return other(net, example_inputs=example_inputs, **settings)

    def __init__(self, net: Any, loss: str | Loss = "cross_entropy", label_smoothing: float = 0.0):
        """Bind the network and the loss.

        Args:
            net: the network.
            loss: ``"cross_entropy"``, ``"mse"`` (against one-hot labels, or float targets shaped
                like the logits), or any function of (logits, y) that returns a batch mean.
            label_smoothing: of the cross-entropy.

        Raises:
            TypeError: the network is of another kind.
        """
        demand_kind(type(self), net)
        self.net = net
        self.loss = loss_function(loss, label_smoothing)
        self.ranks = Ranks()

    def __repr__(self) -> str:
        """The algorithm, its settings and its network's type."""
        own = {"beta": getattr(self, "beta", None), "solver": getattr(self, "solver", None)}
        shown = ", ".join(
            [type(self.net).__name__, *(f"{k}={v}" for k, v in own.items() if v is not None)]
        )
        return f"{type(self).__name__}({shown})"

    @abstractmethod
    def backward(self, x: Tensor, y: Tensor) -> Report:
        """Train feedback, if any; add an estimate of the batch-mean loss gradient to ``.grad``."""

    def follow(self, optimizer: Any) -> Any:
        """Let feedback learn in ``optimizer``'s steps, where the rule needs that; returns it."""
        return optimizer

    @abstractmethod
    def compile(self, mode: str | None = None) -> None:
        """Run the passes through torch.compile from now on, in a ``mode`` without CUDA graphs."""

    def distribute(self, ranks: Ranks) -> None:
        """Train together with other processes from now on.

        Weights, memory and seeds must be the same on all of them. ``backward(x, y)`` then takes
        this process's part of the batch, as large as that of every other along ``ranks.data``, and
        leaves in ``.grad`` and ``report.loss`` what one process would find on the whole batch.
        Batch normalisation alone uses the statistics of each part, and keeps their mean.

        Raises:
            ValueError: layers to be shared out, where the algorithm cannot.
        """
        if ranks.layers.size > 1 and not self.splits_layers:
            raise ValueError(
                f"{type(self).__name__} does not train its feedback layer by layer, so "
                f"{ranks.layers.size} processes cannot share out the layers; share out the batch "
                "alone."
            )
        self.ranks = ranks

    def check(self, x: Tensor) -> None:
        """Refuse a batch that would be got wrong without a word.

        Raises:
            ValueError: no samples.
        """
        if len(x) == 0:
            raise ValueError(
                f"a batch of shape {tuple(x.shape)} has no samples to learn from; leave it out."
            )
        if self.ranks.world.size == 1 and not self._told and several_processes():
            self._told = True
            warn(
                f"{type(self).__name__} trains alone while {torch.distributed.get_world_size()} "
                "processes run, so gradients are not averaged; call "
                "algo.distribute(targetprop.ranks.mesh())."
            )

    _told = False
    _mean = False

    def check_mean(self, logits: Tensor, y: Tensor) -> None:
        """Refuse a summed loss, on the first batch."""
        if not self._mean:
            refuse_sum(self.loss, logits.detach(), y)
            self._mean = True

    def backpropagate(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """``loss.backward()``, gradients of ``parameters`` averaged; the mean loss, detached."""
        alone = self.ranks.data.size == 1
        before = [p.grad for p in parameters]
        for p in [] if alone else parameters:
            p.grad = None
        loss.backward()
        loss = loss.detach()
        if not alone:
            self.average(loss, *(p.grad for p in parameters))
            for p, grad in zip(parameters, before, strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else grad.add_(p.grad)
        return loss

    def average(self, loss: Tensor, *gradients: Tensor | None) -> None:
        """Replace this part's batch means and running statistics by the whole batch's, in place."""
        if self.ranks.data.size > 1:  # alone, a step does not look for statistics
            statistics = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
            self.ranks.data.mean_(loss, *gradients, *statistics)

    def accumulate(self, loss: Tensor, learned: Sequence[Gradients]) -> None:
        """Add the layers' gradients to ``.grad``, averaged like ``loss`` over the whole batch."""
        self.average(loss, *(value for gradients in learned for value in tensors_of(gradients)))
        for layer, gradients in zip(self.net.layers, learned, strict=True):
            layer.accumulate(gradients)

    def state_dict(self) -> dict[str, Any]:
        """All that the algorithm remembers between calls beside the network's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}.")


def demand_kind(kind: type[Algorithm], net: Any) -> None:
    """Refuse what an algorithm of ``kind`` cannot train.

    Raises:
        TypeError: no module, a wrapper that averages gradients, or no ``pair`` network if needed.
    """
    if isinstance(net, DataParallels):
        raise TypeError(
            f"{kind.__name__} averages gradients itself, got {type(net).__name__}; give it the "
            "module within and call algo.distribute(ranks), or attach the module with "
            "targetprop.attach and keep loss.backward()."
        )
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"{kind.__name__} trains a module, got {type(net).__name__}; build one, or "
            "pair(nn.Sequential(...))."
        )
    if not kind.any_module and not isinstance(net, Network):
        raise TypeError(
            f"{kind.__name__} needs explicit passes: make the network by "
            f"targetprop.pair(nn.Sequential(...)), got {type(net).__name__}; Backprop, LDRL, "
            "FeedbackAlignment, DirectFeedbackAlignment, KolenPollack, WeightMirror and "
            "SignSymmetry take any module."
        )


def demand_explicit(net: Network, x: Tensor) -> None:
    """Refuse what explicit passes would get wrong without a word.

    Raises:
        ValueError: the input needs a gradient; half-precision weights or autocast; a hooked module.
    """
    refuse_input_gradient(x)
    short = next((p.dtype for p in net.parameters() if torch.finfo(p.dtype).bits < 32), None)
    if short is not None or torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            "explicit passes need weights in float32 or float64 and no autocast, got "
            f"{short or 'autocast'}; call net.compute_in(torch.bfloat16) for products in a short "
            "format, or attach the plain module instead."
        )
    net.refuse_hooks()


def refuse_input_gradient(x: Tensor) -> None:
    """The first layer of a network of ``pair`` has no feedback.

    Raises:
        ValueError: x needs a gradient.
    """
    if x.requires_grad:
        raise ValueError(
            "the input needs a gradient, but the first layer of a paired network has no feedback; "
            "give x.detach(), or attach the plain module (targetprop.attach) and keep "
            "loss.backward()."
        )


def tensors_of(gradients: Gradients) -> Iterator[Tensor | None]:
    """The tensors of a layer's gradients."""
    weight, bias, own = gradients
    yield from (weight, bias, *(value for _, value in own))


def generator_on(device: torch.device, *numbers: int) -> Generator:
    """A noise generator on ``device``, seeded by several numbers."""
    return torch.Generator(device).manual_seed(mixed(*numbers))
