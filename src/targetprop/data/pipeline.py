"""From uint8 images on the device to normalised, augmented batches, the same on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from targetprop.data.formats import Images
from targetprop.ranks import ALONE, Group
from targetprop.seeds import mixed


def seeded(*numbers: int) -> Generator:
    """A CPU generator seeded by several numbers; a number's neighbours give unrelated streams."""
    return Generator().manual_seed(mixed(*numbers))


def split(data: Images, fraction: float, seed: int = 42) -> tuple[Images, Images]:
    """(rest, held out): a random ``fraction`` of the images is held out, the same for equal seeds.

    Raises:
        ValueError: ``fraction`` is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation fraction {fraction} is outside [0, 1).")
    order = torch.randperm(len(data), generator=seeded(seed))
    count = round(fraction * len(data))
    return data[order[count:].sort().values], data[order[:count].sort().values]


def flip_and_crop(
    images: Tensor,
    generator: Generator,
    flip: bool = True,
    padding: int = 4,
    part: slice = slice(None),
    whole: int | None = None,
) -> Tensor:
    """Each image mirrored with probability ½, shifted by up to ``padding`` pixels, edges repeated.

    The same as padding with the edge and cropping at random (PAPER §5).

    Args:
        images: (B, C, H, W).
        generator: on the CPU.
        flip: mirror images, which digits and letters do not bear.
        padding: the largest shift, in pixels.
        part: which images of a batch these are; they are treated as if the whole batch were there.
        whole: size of that batch; default that of ``images``.
    """
    batch, _, height, width = images.shape
    whole = batch if whole is None else whole
    shift = torch.randint(-padding, padding + 1, (2, whole, 1), generator=generator)[:, part]
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    if flip:
        flipped = torch.rand(whole, 1, generator=generator)[part] < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    each = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
    # torch 2.13's CPU convolutions corrupt the heap on single-channel images with channels-last
    # strides, which contiguous() would leave as they are.
    return moved.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Batches:
    """Batches of a set that lies on one device.

    Attributes:
        data: the images, on the device to train on.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        batch_size: the last batch of an epoch is dropped in training if short: steps cost the same.
        dtype: of the batches.
        augment: ``"none"``, ``"crop"`` or ``"flip-crop"``.
        padding: of the crop.
        seed: of order and augmentation.
        memory_format: of the batches.
        peers: the processes among which every batch is shared out.
    """

    data: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    dtype: torch.dtype = torch.float32
    augment: str = "none"
    padding: int = 4
    seed: int = 0
    memory_format: torch.memory_format = torch.contiguous_format
    peers: Group = ALONE

    def __len__(self) -> int:
        """Batches in an epoch of training."""
        return max(1, len(self.data) // self.batch_size)

    def normalise(self, images: Tensor) -> Tensor:
        """(pixel/255 − mean)/std."""
        mean, std = (
            torch.tensor(v, dtype=self.dtype, device=images.device).view(-1, 1, 1)
            for v in (self.mean, self.std)
        )
        return ((images.to(self.dtype) / 255 - mean) / std).contiguous(
            memory_format=self.memory_format
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """A process's part of an epoch's batches from batch ``start`` on.

        Order and augmentation depend on (seed, epoch, batch) only.
        """
        order = torch.randperm(len(self.data), generator=seeded(self.seed, epoch)).to(
            self.data.images.device
        )
        for i in range(start, len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            mine = self.peers.part(len(batch))
            part = self.data[batch[mine]]
            images = part.images
            if self.augment != "none":
                generator = seeded(self.seed, epoch, i)
                images = flip_and_crop(
                    images, generator, self.augment == "flip-crop", self.padding, mine, len(batch)
                )
            yield self.normalise(images), part.labels

    def once(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, without augmentation; the processes take batches in turn."""
        for i in range(self.peers.rank * batch_size, len(self.data), self.peers.size * batch_size):
            part = self.data[slice(i, i + batch_size)]
            yield self.normalise(part.images), part.labels
