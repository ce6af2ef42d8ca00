"""List the presets, or print one in full."""

from __future__ import annotations

import argparse

import yaml

from targetprop.commands.common import no_more
from targetprop.training import config

EXAMPLE = "targetprop presets digits-ldrl"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("name", nargs="?", help="a preset")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """List the presets, or print the full configuration of one."""
    no_more(words, "presets")
    if args.name:
        print(yaml.safe_dump(config.load(args.name).to_dict(), sort_keys=False), end="")
        return
    for name in config.presets():
        print(name)
