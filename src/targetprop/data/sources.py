"""The data sets: their files, checksums and readers."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from targetprop.data import formats
from targetprop.data.formats import DataError, Images


@dataclass(frozen=True)
class File:
    """A published file: name, hash (``"md5:..."`` or ``"sha1:..."``), the address if it has one."""

    name: str
    digest: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set; ``layouts`` are the sets of files that hold it, the first the one to fetch."""

    name: str
    about: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layouts: tuple[tuple[File, ...], ...] = ()
    read: Callable[[list[Path], int], tuple[Images, Images]] | None = None
    remedy: str = ""


def _idx(paths: list[Path], classes: int) -> tuple[Images, Images]:
    return formats.read_idx_pair(paths[0], paths[1], classes), formats.read_idx_pair(
        paths[2], paths[3], classes
    )


def _cifar10(paths: list[Path], classes: int) -> tuple[Images, Images]:
    if len(paths) == 1:
        train = [f"data_batch_{i}.bin" for i in range(1, 6)]
        return (
            formats.read_cifar_archive(paths[0], train, classes),
            formats.read_cifar_archive(paths[0], ["test_batch.bin"], classes),
        )
    return formats.read_cifar_files(paths[:5], classes), formats.read_cifar_files(
        paths[5:], classes
    )


def _cifar100(paths: list[Path], classes: int) -> tuple[Images, Images]:
    if len(paths) == 1:
        train, test = (
            formats.read_cifar_archive(paths[0], [f"{part}.bin"], classes, 2)
            for part in ("train", "test")
        )
        return train, test
    train, test = (formats.read_cifar_files([path], classes, 2) for path in paths)
    return train, test


def _imagenet32(paths: list[Path], classes: int) -> tuple[Images, Images]:
    return formats.read_imagenet32(paths[:-1], classes), formats.read_imagenet32(
        paths[-1:], classes
    )


def _idx_layouts(base: str, digests: tuple[str, ...]) -> tuple[tuple[File, ...], ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    zipped = tuple(
        File(f"{name}-ubyte.gz", f"md5:{digest}", f"{base}{name}-ubyte.gz")
        for name, digest in zip(names, digests, strict=True)
    )
    return zipped, tuple(File(f"{name}-ubyte") for name in names)


_TORONTO = "https://www.cs.toronto.edu/~kriz/"


_CIFAR10_FILES = tuple(
    File(f"{name}.bin", f"sha1:{digest}")
    for name, digest in {
        "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
    }.items()
)


SOURCES = {
    source.name: source
    for source in (
        Source(
            "digits",
            "1,797 digits of 8×8 pixels, shipped with scikit-learn",
            10,
            (0.3053,),
            (0.3760,),
        ),
        Source(
            "mnist",
            "70,000 digits of 28×28 pixels (LeCun et al. 1998)",
            10,
            (0.5,),
            (0.5,),
            _idx_layouts(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                (
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "9fb629c4189551a2d022fa330f9573f3",
                    "ec29112dd5afa0611ce80d1b7f02629c",
                ),
            ),
            _idx,
        ),
        Source(
            "fashion-mnist",
            "70,000 articles of clothing of 28×28 pixels (Xiao et al. 2017)",
            10,
            (0.5,),
            (0.5,),
            _idx_layouts(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                (
                    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "25c81989df183df01b3e8a0aad5dffbe",
                    "bef4ecab320f06d8554ea6380940ec79",
                    "bb300cfdad3c16e7a12a480ee83cd310",
                ),
            ),
            _idx,
        ),
        Source(
            "cifar10",
            "60,000 photographs of 32×32 pixels in 10 classes (Krizhevsky 2009)",
            10,
            (125.3 / 255, 123.0 / 255, 113.9 / 255),
            (63.0 / 255, 62.1 / 255, 66.7 / 255),
            (
                (
                    File(
                        "cifar-10-binary.tar.gz",
                        "md5:c32a1d4ab5d03f1284b67883e8d87530",
                        f"{_TORONTO}cifar-10-binary.tar.gz",
                    ),
                ),
                _CIFAR10_FILES,
            ),
            _cifar10,
        ),
        Source(
            "cifar100",
            "60,000 photographs of 32×32 pixels in 100 classes (Krizhevsky 2009)",
            100,
            (129.3 / 255, 124.1 / 255, 112.4 / 255),
            (68.2 / 255, 65.4 / 255, 70.4 / 255),
            (
                (
                    File(
                        "cifar-100-binary.tar.gz",
                        "md5:03b5dce01913d631647c71ecec9e9cb8",
                        f"{_TORONTO}cifar-100-binary.tar.gz",
                    ),
                ),
                (File("train.bin"), File("test.bin")),
            ),
            _cifar100,
        ),
        Source(
            "imagenet32",
            "1,331,167 photographs of 32×32 pixels in 1,000 classes (Chrabaszcz et al. 2017)",
            1000,
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            ((*(File(f"train_data_batch_{i}.npz") for i in range(1, 11)), File("val_data.npz")),),
            _imagenet32,
            "it is given out to registered users only: get the npz version of ImageNet 32×32 from "
            "https://image-net.org/download-images and put its files there",
        ),
        Source(
            "folder",
            "your own images: ROOT/train/CLASS/* and ROOT/test/CLASS/*, ROOT being the data folder",
            0,
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
        ),
    )
}


def source(name: str) -> Source:
    """The description of a data set.

    Raises:
        DataError: unknown name; the sentence gives the nearest one.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(SOURCES)}."
        raise DataError(f"unknown data set '{name}'; {hint}")
    return SOURCES[name]
