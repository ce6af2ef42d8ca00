"""The data sets by name: where they come from, what their files are, how normalised (PAPER §5)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from targetprop.data.folder import listing, read_folder
from targetprop.data.formats import DataError, Images
from targetprop.data.sources import File, source


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: of ``SOURCES``.
        train: images to train with.
        test: images to test with.
        classes: their number.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        names: of the classes, where folders name them.
        skipped: how many files were passed over, by kind.
    """

    name: str
    train: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a run records of its data: names and numbers, a digest of labels and of pixels.

        All labels count, and about 4,000 images spread over the set.
        """
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.labels.numpy().tobytes())
            digest.update(part.images[:: max(1, len(part) // 4000)].numpy().tobytes())
        return {
            "name": self.name,
            "classes": list(self.names) or self.classes,
            "train": len(self.train),
            "test": len(self.test),
            "sha256": digest.hexdigest(),
        }

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w


def default_folder() -> Path:
    """Where data sets lie by default: ``$TARGETPROP_DATA``, else the user's cache folder."""
    import pooch

    named = os.environ.get("TARGETPROP_DATA")
    try:
        return home(named) if named else Path(pooch.os_cache("targetprop"))
    except RuntimeError as error:  # nobody's home is known
        raise DataError(
            f"{error}; say where data sets lie by --data-dir or TARGETPROP_DATA."
        ) from error


def home(name: str | Path) -> Path:
    """The path called ``name``, in which ~ is a home.

    Raises:
        DataError: of nobody here.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError(f"{name}: {str(error).rstrip('.')}; give a path.") from error


INNER = {
    "cifar10": ("cifar-10-batches-bin",),
    "cifar100": ("cifar-100-binary",),
    "mnist": ("MNIST/raw",),
    "fashion-mnist": ("FashionMNIST/raw",),
}
"""Folders that archives and torchvision make for a data set."""

PICKLED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def locate(name: str, folder: Path | None = None) -> tuple[list[Path], tuple[File, ...]]:
    """The files of a data set under ``folder`` or ``folder/NAME``.

    Raises:
        DataError: no complete layout lies there; the sentence gives the command that fetches it.
    """
    about = source(name)
    folder = default_folder() if folder is None else home(folder)
    places = [folder / name, folder, *(folder / inner for inner in INNER.get(name, ()))]
    places += [folder / name / inner for inner in INNER.get(name, ())]
    nearest: tuple[int, list[Path]] = 0, []
    for files in about.layouts:
        for place in places:
            missing = [place / file.name for file in files if not (place / file.name).is_file()]
            if not missing:
                return [place / file.name for file in files], files
            nearest = max(nearest, (len(files) - len(missing), missing), key=lambda found: found[0])
    remedy = about.remedy or f"run: targetprop data fetch {name} --data-dir {folder}"
    if nearest[0]:
        lacking = ", ".join(str(path) for path in nearest[1])
        raise DataError(f"data set '{name}' lacks {lacking}; {remedy}.")
    pickled = next((p for place in places if (p := place / PICKLED.get(name, "-")).exists()), None)
    if pickled:
        raise DataError(
            f"{pickled}: holds pickles, which could run any program and are not read; {remedy}."
        )
    expected = ", or ".join(", ".join(file.name for file in files) for files in about.layouts)
    raise DataError(f"data set '{name}' is not in {folder} (looked for {expected}); {remedy}.")


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
    folder = None if folder is None else home(folder)
    if name == "digits":
        train, test = _digits()
    elif name == "folder":
        if folder is None:
            raise DataError(
                "the data set 'folder' needs its root; "
                "give --data-dir ROOT with ROOT/train and ROOT/test."
            )
        train, names, skipped = read_folder(folder / "train", image_size)
        test, _, also = read_folder(folder / "test", image_size, names)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"{folder}: training and test images differ in size; give data.image_size."
            )
        passed = listing(skipped + also)
        return Dataset(name, train, test, len(names), about.mean, about.std, tuple(names), passed)
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
