"""Files never half written; checkpoints checked before they are read, running no code then.

A checkpoint is what ``torch.save`` writes, a zip archive, with the SHA-256 of all before it in the
archive's comment.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from targetprop.training import files
from targetprop.training.files import FileError

FORMAT = 3
HUGE = 2**36
"""Bytes of a checkpoint at most."""

MARK = b"targetprop sha256:"


class CheckpointError(Exception):
    """A missing, damaged or foreign checkpoint; the message names the file and the remedy."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write ``path`` by a temporary file beside it, which replaces it once complete on disk."""
    name = path.with_name(f".{path.name}.{os.getpid()}.part")
    name.unlink(missing_ok=True)
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            reach_disk(file)
        os.replace(name, path)
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def reach_disk(file: IO[bytes]) -> None:
    """Wait until a file is on disk, where its file system can tell; a full or broken one raises."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM):
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed process left."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, lambda file: file.write(signed(buffer.getvalue())))


def signed(archive: bytes) -> bytes:
    """A zip archive without a comment, its checksum made one: its end is the comment's length."""
    comment = MARK + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + len(comment).to_bytes(2, "little") + comment


def unsigned(content: bytes) -> bytes | None:
    """The archive that ``signed`` was given; None if there is no checksum or a byte differs."""
    length = len(MARK) + 64
    body, comment = content[:-length], content[-length:]
    archive = body[:-2] + bytes(2)
    return archive if signed(archive) == body + comment else None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: missing, damaged, or not one of ours.
    """
    try:
        content = files.read_bytes(path, HUGE)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    except MemoryError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path}: its {size} bytes do not fit into memory.") from error
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint; train first, or name the run's folder."
        ) from error
    archive = unsigned(content)
    if archive is None:
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint (its checksum is missing or differs); "
            f"use another, such as the one that 'targetprop resume {path.parent} --auto' finds."
        )
    try:
        state = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
    except Exception as error:  # torch, zipfile and the unpickler each have their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({reason[:120]}); use another."
        ) from error
    try:
        too_large = any(hollow(state))
    except (RecursionError, RuntimeError, NotImplementedError) as error:  # loops, sparse tensors
        raise CheckpointError(
            f"{path}: holds what no run writes ({type(error).__name__}); use another."
        ) from error
    if too_large:
        raise CheckpointError(f"{path}: holds tensors larger than their data; use another.")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path}: format {found}, expected {FORMAT}; it was not written by this program."
        )
    return state


def hollow(tree: Any) -> Iterator[bool]:
    """Of every tensor in nested values, whether it claims more numbers than are stored."""
    if isinstance(tree, torch.Tensor):
        yield tree.numel() * tree.element_size() > tree.untyped_storage().nbytes()
    elif isinstance(tree, (dict, list, tuple)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from hollow(value)


OURS = ("last.pt", "previous.pt", "best.pt")


def newest_valid(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint of ``folder`` or its run folders that loads; why newer ones do not.

    Raises:
        CheckpointError: there is none.
    """
    refused: list[str] = []
    best: tuple[int, float, Path] | None = None
    for path in sorted(folder.rglob("*.pt")):
        if path.name not in OURS or not (path.parent / "config.yaml").is_file():
            continue
        try:
            step = load(path)["progress"]["step"]
            found = int(step), path.stat().st_mtime, path
            best = found if best is None else max(best, found)
        except CheckpointError as error:
            refused.append(str(error))
        except (LookupError, TypeError, ValueError):
            refused.append(f"{path}: holds no progress.")
    if best is not None:
        return best[2], refused
    reasons = f" ({'; '.join(refused)})" if refused else ""
    raise CheckpointError(
        f"{folder}: no checkpoint here can be loaded{reasons}; train first, or name another folder."
    )


def set_aside(path: Path) -> None:
    """Rename what stands where a checkpoint belongs and is no file."""
    if path.exists() and not path.is_file():
        os.replace(path, path.with_name(f"{path.name}.set-aside"))


def keep_previous(path: Path) -> None:
    """Name the file at ``path``, if any, previous.pt too; ``path`` itself stays throughout."""
    if path.exists():
        spare = path.with_name(f".{path.name}.previous.part")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, spare)
        os.replace(spare, path.with_name("previous.pt"))
