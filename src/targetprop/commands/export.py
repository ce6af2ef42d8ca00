"""Write a run's forward network, without feedback, as safetensors, ONNX or a torch.export file."""

from __future__ import annotations

import argparse
from pathlib import Path

from targetprop.commands.common import answer, data_dir, finished_config, overrides, say
from targetprop.training import export
from targetprop.training.checkpoint import OURS, CheckpointError, write_atomically
from targetprop.training.config import ConfigError, place, require

EXAMPLE = "targetprop export runs/mine --format onnx"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("run", help="the run's folder")
    p.add_argument("--format", choices=tuple(export.FORMATS), required=True, help="of the file")
    p.add_argument("--weights", choices=("best", "last"), default="last", help="which checkpoint")
    p.add_argument("--out", metavar="FILE", help="the file (default RUN/WEIGHTS.FORMAT)")
    p.add_argument("--force", action="store_true", help="replace the file where there is one")
    p.add_argument("--data-dir", help="where data sets lie")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Write the file, once what it holds gives the logits of the run's network on test images."""
    folder = place(args.run)
    chosen = finished_config(folder, [*overrides(words), *data_dir(args)])
    default = folder / f"{args.weights}.{args.format}"
    path = default if args.out is None else place(args.out)
    refuse(path, args.force)
    require(f"--format {args.format}", "export", *export.FORMATS[args.format].packages)
    if args.weights == "best" and not (folder / "best.pt").exists():
        raise CheckpointError(
            f"{folder / 'best.pt'}: no such checkpoint: without validation images there is no best "
            "one; give --weights last."
        )
    made = export.prepared(chosen, folder, args.weights)
    content = made.content(args.format)
    write_atomically(path, lambda file: file.write(content))
    say(
        f"{path}: {len(content) / 2**20:.1f} MiB, "
        f"the logits of the run's network on {len(made.images)} test images"
    )
    answer(args, {"file": str(path), "bytes": len(content), "checked_on": len(made.images)})


def refuse(path: Path, force: bool) -> None:
    """Refuse a place where no file can be put, or one that is taken.

    Raises:
        ConfigError: a folder, in no folder, or there already and not ``force``.
    """
    if path.name in OURS:
        raise ConfigError(f"--out {path} is a checkpoint's name; give another.")
    if path.exists() and not path.is_file():
        raise ConfigError(f"--out {path} is a folder or no regular file; give a file's name.")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}; make it first.")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; give --force to replace it, or another --out.")
