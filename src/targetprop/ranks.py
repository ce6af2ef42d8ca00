"""The processes that train one network together, by ``torch.distributed``; or this one alone.

Two things can be shared out. *Samples*: every process has a part of the batch, sums over the batch
are summed over the processes, and all results are those of the whole batch. *Layers*: feedback
training is local to a layer, so processes with the same samples each train the feedback of some
layers and exchange the weights. Both together form a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RankLost(Exception):
    """An exchange broke off, because another process died or cannot be reached."""


class Group:
    """Processes that exchange tensors; without a group this one alone, whose exchanges do nothing.

    Attributes:
        rank: this process's number in the group, from 0.
        size: of the group.
    """

    def __init__(self, group: Any = None):
        """Join ``group``, a ``torch.distributed`` process group."""
        self._group = group
        self.rank, self.size = (
            (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        )

    def part(self, count: int) -> slice:
        """Which of ``count`` items are this process's; parts differ by one item at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def total_(self, *tensors: Tensor | None) -> None:
        """Replace every tensor but None by its sum over the processes, all in one exchange."""
        present = [t for t in tensors if t is not None]
        if self.size == 1 or not present:
            return
        flat = torch.cat([t.reshape(-1) for t in present])
        self._exchange(dist.all_reduce, flat)
        unpack(flat, present)

    def mean_(self, *tensors: Tensor | None) -> None:
        """The same with means."""
        if self.size > 1:
            self.total_(*tensors)
            for t in tensors:
                if t is not None:
                    t.div_(self.size)

    def broadcast_(self, source: int, *tensors: Tensor) -> None:
        """Replace every tensor by that of process ``source``, all in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self._exchange(dist.broadcast, flat, group_src=source)
        if self.rank != source:
            unpack(flat, tensors)

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every process, in the order of ranks; plain values and CPU tensors."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._exchange(dist.all_gather_object, found, value)
        return found

    def maximum(self, number: int) -> int:
        """The largest ``number`` of all processes."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        self._exchange(dist.all_reduce, found, op=dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Until all processes have come here."""
        self.maximum(0)

    def _exchange(self, collective: Callable, *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, group=self._group, **kwargs)
        except RuntimeError as error:  # what every backend raises, a type of its own or not
            # without the backend's source line and advice
            reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            raise RankLost(f"lost contact with another rank ({reason}).") from error


def unpack(flat: Tensor, tensors: Any) -> None:
    """Copy the pieces of ``flat`` into ``tensors``."""
    for t, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(piece.view(t.shape))


ALONE = Group()


@dataclass(frozen=True)
class Ranks:
    """Where this process stands in the mesh.

    Attributes:
        world: all processes.
        data: those with other parts of the same batch, which train the feedback of the same layers.
        layers: those with the same part of the batch, which train the feedback of other layers.
    """

    world: Group = ALONE
    data: Group = ALONE
    layers: Group = ALONE

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.world.rank == 0


SINGLE = Ranks()
"""One process, which has all of a batch and all layers."""


def mesh(layers: int = 1) -> Ranks:
    """The mesh of ``torch.distributed``, initialised before, with ``layers`` along the layers.

    Raises:
        ValueError: the number of processes is no multiple of ``layers``.

    Example:
        >>> torch.distributed.init_process_group()  # doctest: +SKIP
        >>> algo.distribute(tp.ranks.mesh())  # doctest: +SKIP
        >>> algo.backward(x, y)  # doctest: +SKIP
    """
    size = dist.get_world_size()
    if layers < 1 or size % layers:
        raise ValueError(
            f"{size} processes cannot be split over {layers} along the layers; give a divisor of "
            f"{size}."
        )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device_mesh = dist.init_device_mesh(
        kind, (size // layers, layers), mesh_dim_names=("data", "layers")
    )
    return Ranks(
        Group(dist.group.WORLD),
        Group(device_mesh.get_group("data")),
        Group(device_mesh.get_group("layers")),
    )
