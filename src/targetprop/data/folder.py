"""Image folders, ROOT/CLASS/**/IMAGE, as photographs come; what is passed over is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from targetprop.data.formats import DataError, Images, checked, reading

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
"""What Pillow may decode here, whatever a file is called: none of them runs another program."""

SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}


def read_folder(
    root: Path, size: int | None = None, names: Sequence[str] | None = None
) -> tuple[Images, list[str], Counter[str]]:
    """Images under ``root/CLASS``, at any depth, as 8-bit RGB and the right way up.

    Classes are in alphabetic order unless ``names`` gives them. Images take turns by class, so
    that the first so many of them hold every class alike.

    Args:
        root: the folder of class folders.
        size: resize every image to size × size; without it all must be of one size already.
        names: the classes to expect.

    Returns:
        the images; the names of the classes; how many files were passed over, by kind.

    Raises:
        DataError: no classes, a class without images, an image that cannot be read, unequal
            sizes, or a class that is not in ``names``.
    """
    with reading(root):
        entries = sorted(root.iterdir()) if root.is_dir() else []
    found = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise DataError(f"{root}: holds no class folders; expected {root}/CLASS/IMAGE.")
    names = [p.name for p in found] if names is None else list(names)
    skipped: Counter[str] = Counter()
    files: list[tuple[int, int, Path]] = []
    for place in found:
        if place.name not in names:
            raise DataError(f"{root}: class '{place.name}' does not occur in the training folder.")
        paths = list(images_under(place, skipped))
        if not paths:
            passed = f" ({listing(skipped)} passed over)" if skipped else ""
            raise DataError(f"{place}: holds no image{passed}; put some there or remove the class.")
        files += [(turn, names.index(place.name), path) for turn, path in enumerate(paths)]
    pixels: list[np.ndarray] = []
    for _, _, path in sorted(files):
        pixels.append(read_image(path, size))
        if pixels[-1].shape != pixels[0].shape:
            sizes = " differs from ".join(
                f"{p.shape[0]}×{p.shape[1]}" for p in (pixels[-1], pixels[0])
            )
            raise DataError(f"{path}: size {sizes}; give data.image_size.")
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    labels = np.asarray([label for _, label, _ in sorted(files)])
    return checked(stacked, labels, len(names), root), names, skipped


def images_under(place: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The image files below ``place`` in the order of their paths; others count as ``skipped``."""
    with reading(place):
        entries = sorted(place.iterdir())
    for path in entries:
        if path.name.startswith("."):
            skipped["hidden"] += 1
        elif path.is_dir() and path.is_symlink():  # of a loop, of another class
            skipped["link to a folder"] += 1
        elif path.is_dir():
            yield from images_under(path, skipped)
        elif not path.is_file():  # a FIFO would keep its reader waiting for ever
            skipped["no regular file"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            skipped[path.suffix.lower() or "without a suffix"] += 1
        else:
            yield path


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """One image as bytes (height, width, 3), turned as its EXIF orientation says."""
    from PIL import Image, ImageOps

    with reading(path):
        try:
            picture: Any = Image.open(path, formats=list(FORMATS))
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{path}: too large to be decoded safely ({error}); scale it down."
            ) from error
        with picture:
            if picture.mode.startswith(("I", "F")):
                picture = Image.fromarray(eight_bits(np.asarray(picture), path))
            else:
                picture = ImageOps.exif_transpose(picture)
            rgb = picture.convert("RGB")
            return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR) if size else rgb)


def eight_bits(grey: np.ndarray, path: Path) -> np.ndarray:
    """16-bit grey levels as bytes; Pillow would cut them off at 255."""
    if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 65535:
        raise DataError(f"{path}: pixels are {grey.dtype}, expected 8 or 16 bits; convert it.")
    return (grey.astype(np.uint32) * 255 // 65535).astype(np.uint8)


def listing(skipped: Counter[str]) -> str:
    """``3 hidden, 1 .txt``."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
