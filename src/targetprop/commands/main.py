"""The command line: ``targetprop COMMAND``; errors become one sentence and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import shtab
import torch

from targetprop import PairingError, __version__
from targetprop.commands import (
    bench,
    compare,
    data,
    evaluate,
    export,
    presets,
    report,
    reproduce,
    resume,
    scaling,
    sweep,
    terminal,
    train,
    tune,
)
from targetprop.commands.common import Stopped, heed, loudness
from targetprop.data import DataError
from targetprop.ranks import RankLost
from targetprop.training import config, launch, loop
from targetprop.training.checkpoint import CheckpointError
from targetprop.training.config import ConfigError
from targetprop.training.files import FileError

BAD_INPUT, DIVERGED, UNFORESEEN = 2, 3, 70
COMMANDS = {
    "train": train,
    "resume": resume,
    "sweep": sweep,
    "tune": tune,
    "reproduce": reproduce,
    "evaluate": evaluate,
    "export": export,
    "compare": compare,
    "report": report,
    "bench": bench,
    "scaling": scaling,
    "data": data,
    "presets": presets,
}


def parser() -> argparse.ArgumentParser:
    """The subcommands; options of the configuration are left for ``overrides``."""
    top = argparse.ArgumentParser(
        "targetprop",
        description="Train deep networks by difference target propagation, "
        "beside what it is compared with.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=__version__)
    shtab.add_argument_to(top, "--print-completion", help="of the commands, for a shell")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        made = commands.add_parser(
            name,
            help=command.__doc__,
            description=command.__doc__,
            epilog=f"example: {command.EXAMPLE}",
            allow_abbrev=False,
        )
        command.add(made)
        loudness(made)
        made.set_defaults(action=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 2 bad input (one sentence on standard error), 3 training diverged, 4 contact with
    another rank lost, 128 + n stopped by signal n. Of what all processes see rank 0 speaks.
    """
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, whatever the surroundings ask for
    words = joined(sys.argv[1:] if argv is None else list(argv))
    terminal.settle()
    try:
        args, rest = parser().parse_known_args(words)
        args.words = words
        heed(args)
        args.action(args, rest)
    except Stopped as stopped:
        return complain(stopped, stopped.code) if stopped.message else stopped.code
    except RankLost as error:
        return launch.LOST if launch.LAUNCHED in os.environ else complain(error, launch.LOST)
    except (ConfigError, DataError, CheckpointError, FileError, PairingError) as error:
        return complain(error, BAD_INPUT)
    except loop.Diverged as error:
        return DIVERGED if rank() else complain(error, DIVERGED)
    except loop.Interrupted as error:
        return 128 + error.number if rank() else complain(error, 128 + error.number)
    except OSError as error:
        where, why = os.fsdecode(error.filename or "a file"), error.strerror or error
        return complain(f"{where}: {why}; free it or choose another place.", BAD_INPUT)
    except KeyboardInterrupt:
        return complain("stopped; what had been written stays as it was.", 130)
    except Exception as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(
            error
        ):
            return complain("out of memory; take a smaller data.batch_size or network.", BAD_INPUT)
        if "InvalidCxxCompiler" in str(error):
            return complain(
                "torch.compile finds no working C++ compiler; install one (g++, say), name it in "
                "CXX, or leave compile off.",
                BAD_INPUT,
            )
        return complain(unforeseen(error), UNFORESEEN)
    lost = terminal.unwritten()
    return complain(lost, BAD_INPUT) if lost else 0


def joined(words: Sequence[str]) -> list[str]:
    """The words, each setting one with its value: it may then stand before the command's own."""
    known, found, rest = set(config.keys()), [], list(words)
    while rest:
        word = rest.pop(0)
        key = word[2:] if word.startswith("--") else ""
        if (
            rest
            and not rest[0].startswith("--")
            and (key in known or "." in key)
            and "=" not in key
        ):
            word = f"{word}={rest.pop(0)}"
        found.append(word)
    return found


def unforeseen(error: Exception) -> str:
    """A sentence for what nothing above knows; the traceback goes to a file."""
    path = Path(tempfile.gettempdir()) / f"targetprop-{os.getpid()}.log"
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
    first = (str(error).splitlines() or [""])[0][:200]
    return (
        f"unforeseen {type(error).__name__}: {first}; its traceback is in {path}, please report it."
    )


def complain(error: Exception | str, code: int) -> int:
    """Print one sentence on standard error."""
    who = f"targetprop, rank {rank()}" if launch.started() else "targetprop"
    print(terminal.harmless(f"{who}: {error}"), file=sys.stderr)
    return code


def rank() -> int:
    """The number of this process among those of a run; 0 if it is alone."""
    word = os.environ["RANK"] if launch.started() else "0"
    return int(word) if word.isdecimal() else 0


if __name__ == "__main__":
    sys.exit(main())
