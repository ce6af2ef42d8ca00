"""Readers of the published formats; nothing is unpickled, a damaged file is one clear DataError."""

from __future__ import annotations

import gzip
import io
import math
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class DataError(Exception):
    """A data set that is missing, damaged or wrong; the message names file, fault and remedy."""


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) as uint8 with their class labels (N,) as int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Images:
        """The images at ``index``."""
        return Images(self.images[index], self.labels[index])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the parsing of a damaged file raises into a ``DataError`` that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit into memory; take fewer or smaller images."
        ) from error
    except OSError as error:
        if error.errno is None:  # Pillow's own, of a damaged image
            raise DataError(f"{path}: damaged ({error}); get it anew.") from error
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); see who may read it."
        ) from error
    except (
        Exception
    ) as error:  # parsers of hostile bytes raise nearly anything; the cause stays chained
        raise DataError(
            f"{path}: damaged or not of its format ({type(error).__name__}: {error}); get it anew."
        ) from error


def read_idx(path: Path) -> np.ndarray:
    """An IDX byte array, gzipped or not: magic 0 0 8 rank, big-endian sizes, data (LeCun, MNIST).

    Raises:
        DataError: wrong magic number, or more or fewer bytes than the sizes say.
    """
    with reading(path), open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        magic = stream.read(4)
        if len(magic) != 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
            raise DataError(
                f"{path}: magic number {magic.hex() or 'missing'} "
                "is not that of an IDX file of bytes."
            )
        sizes = np.frombuffer(stream.read(4 * magic[3]), ">u4")
        if len(sizes) != magic[3]:
            raise DataError(f"{path}: truncated in its header; get it anew.")
        shape = tuple(int(size) for size in sizes)
        expected = math.prod(shape)
        if expected > 2**34:
            raise DataError(f"{path}: sizes {shape} in its header are absurd; get it anew.")
        content = stream.read(expected + 1)
        if len(content) != expected:
            more = "more" if len(content) > expected else "fewer"
            raise DataError(
                f"{path}: {more} bytes than the {expected} its header announces; get it anew."
            )
        stream.read(1)  # the end of a gzip stream holds its checksum
        return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_pair(images: Path, labels: Path, classes: int) -> Images:
    """Grey images (N, 1, H, W) and labels from two IDX files.

    Raises:
        DataError: either file is damaged, their lengths differ, or a label is out of range.
    """
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise DataError(
            f"{images}: shape {x.shape} does not go with the labels' {y.shape} in {labels}; "
            "get both anew."
        )
    return checked(torch.from_numpy(x.copy())[:, None], y, classes, labels)


def checked(images: Tensor, labels: np.ndarray, classes: int, path: Path) -> Images:
    """Images with labels in 0..classes − 1."""
    if len(labels) == 0:
        raise DataError(f"{path}: holds no image.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{path}: label {low if low < 0 else high} is outside 0..{classes - 1}; "
            "the file is altered, get it anew."
        )
    return Images(images, torch.from_numpy(labels.astype(np.int64)))


def read_cifar(content: bytes, path: Path, classes: int, label_bytes: int = 1) -> Images:
    """CIFAR's records: ``label_bytes`` labels, the last of which counts; 3072 bytes, channel-major.

    Raises:
        DataError: not a whole number of records, or a label out of range.
    """
    record = label_bytes + 3072
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"{path}: {len(content)} bytes are not whole records of {record}; "
            "truncated, get it anew."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    images = torch.from_numpy(rows[:, label_bytes:].copy()).view(-1, 3, 32, 32)
    return checked(images, rows[:, label_bytes - 1], classes, path)


def read_cifar_files(paths: Sequence[Path], classes: int, label_bytes: int = 1) -> Images:
    """Several extracted CIFAR binary files, one after the other."""
    parts = []
    for path in paths:
        with reading(path):
            parts.append(read_cifar(path.read_bytes(), path, classes, label_bytes))
    return join(parts)


def read_cifar_archive(
    path: Path, names: Sequence[str], classes: int, label_bytes: int = 1
) -> Images:
    """The members ``names`` (without folder) of a CIFAR ``.tar.gz``, read without extraction."""
    parts = {}
    with reading(path), gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = Path(member.name).name
                found = archive.extractfile(member) if name in names and member.isfile() else None
                if found is not None:
                    content = found.read()
                    parts[name] = read_cifar(content, path, classes, label_bytes)
        while stream.read(1 << 20):  # the end of a gzip stream holds its checksum
            continue
    missing = [name for name in names if name not in parts]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; get it anew.")
    return join([parts[name] for name in names])


def read_imagenet32(paths: Sequence[Path], classes: int = 1000) -> Images:
    """ImageNet 32×32 npz batches: ``data`` (N × 3072 uint8, channel-major), ``labels`` from 1."""
    parts = []
    for path in paths:
        with reading(path), np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as batch:
            if not {"data", "labels"} <= set(batch.files):
                raise DataError(f"{path}: holds {batch.files}, expected 'data' and 'labels'.")
            data, labels = batch["data"], batch["labels"]
            if (
                data.dtype != np.uint8
                or data.ndim != 2
                or data.shape[1] != 3072
                or labels.shape != data.shape[:1]
            ):
                raise DataError(
                    f"{path}: data {data.dtype}{data.shape} and labels {labels.shape} "
                    "are not N × 3072 bytes and N."
                )
            if not np.issubdtype(labels.dtype, np.integer):
                raise DataError(f"{path}: labels are {labels.dtype}, expected whole numbers.")
            images = torch.from_numpy(data.copy()).view(-1, 3, 32, 32)
            parts.append(checked(images, labels.astype(np.int64) - 1, classes, path))
    return join(parts)


def join(parts: Sequence[Images]) -> Images:
    """Several sets as one."""
    return Images(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
