"""The data sets by name: where they come from, what their files are, how normalised (PAPER §5)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from targetprop.data import formats
from targetprop.data.formats import DataError, Images
from targetprop.data.sources import File, source


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; ``mean`` and ``std`` per channel are those of pixels in [0, 1]."""

    name: str
    train: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w


def default_folder() -> Path:
    """Where data sets lie by default: ``$TARGETPROP_DATA``, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("TARGETPROP_DATA") or pooch.os_cache("targetprop"))


def locate(name: str, folder: Path | None = None) -> tuple[list[Path], tuple[File, ...]]:
    """The files of a data set under ``folder`` or ``folder/NAME``.

    Raises:
        DataError: no complete layout lies there; the sentence gives the command that fetches it.

    """
    about = source(name)
    folder = default_folder() if folder is None else folder
    inner = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}.get(name, name)
    places = [folder / name, folder / name / inner, folder, folder / inner]
    for files in about.layouts:
        for place in places:
            paths = [place / file.name for file in files]
            if all(path.is_file() for path in paths):
                return paths, files
    remedy = about.remedy or f"run: targetprop data fetch {name} --data-dir {folder}"
    raise DataError(f"data set '{name}' is not in {folder}; {remedy}.")


def verify(path: Path, file: File) -> None:
    """Compare a file with its published hash.

    Raises:
        DataError: they differ.

    """
    if file.digest is None:
        return
    kind, expected = file.digest.split(":")
    with open(path, "rb") as content:
        digest = hashlib.new(kind)
        while block := content.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: {kind} is {found}, published is {expected}; "
            "truncated or altered, get it anew."
        )


def load(name: str, folder: str | Path | None = None, image_size: int | None = None) -> Dataset:
    """Read a data set, its files checked against their published hashes.

    Args:
        name: one of ``SOURCES``.
        folder: of its files, default ``default_folder()``; for ``"folder"`` the root of all images.
        image_size: for ``"folder"``, the size to bring every image to.

    ``"imagenet32"`` has the classes of its training labels, so that subsets are read as they are.

    Raises:
        DataError: unknown, missing, truncated or altered; one sentence names file and remedy.

    Example:
        >>> tp.data.load("digits").in_shape
        (1, 8, 8)

    """
    about = source(name)
    folder = None if folder is None else Path(folder).expanduser()
    if name == "digits":
        train, test = _digits()
    elif name == "folder":
        if folder is None:
            raise DataError(
                "the data set 'folder' needs its root; "
                "give --data-dir ROOT with ROOT/train and ROOT/test."
            )
        train, names = formats.read_folder(folder / "train", image_size)
        test, _ = formats.read_folder(folder / "test", image_size, names)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"{folder}: training and test images differ in size; give data.image_size."
            )
        return Dataset(name, train, test, len(names), about.mean, about.std)
    else:
        paths, files = locate(name, folder)
        for path, file in zip(paths, files, strict=True):
            verify(path, file)
        read: Any = about.read
        train, test = read(paths, about.classes)
    # a subset of ImageNet's classes comes in the same files: the training labels tell how many
    classes = int(train.labels.max()) + 1 if name == "imagenet32" else about.classes
    if int(test.labels.max()) >= classes:
        raise DataError(
            f"{folder}: label {int(test.labels.max())} occurs among the test images only; "
            f"training has {classes} classes."
        )
    return Dataset(name, train, test, classes, about.mean, about.std)


def _digits() -> tuple[Images, Images]:
    """scikit-learn's digits, 17 grey levels stretched to bytes; every fifth image for testing."""
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)
    pixels = np.rint(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    everything = Images(
        torch.from_numpy(pixels)[:, None].contiguous(), torch.from_numpy(labels.astype(np.int64))
    )
    held_out = torch.arange(len(everything)) % 5 == 4
    return everything[~held_out], everything[held_out]
