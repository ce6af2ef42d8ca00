"""List the presets, or print one in full."""

from __future__ import annotations

import argparse

import yaml

from targetprop.commands.common import answer, console, no_more
from targetprop.training import config

EXAMPLE = "targetprop presets digits-ldrl"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("name", nargs="?", help="a preset")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """List the presets, or print the full configuration of one."""
    no_more(words, "presets")
    if args.name:
        chosen = config.load(args.name).to_dict()
        plain, text = chosen, yaml.safe_dump(chosen, sort_keys=False)
    else:
        plain = list(config.presets())
        text = "\n".join(plain) + "\n"
    console.out(text, end="", highlight=False)
    answer(args, plain)
