"""What all processes of a study agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targetprop.training import config
from targetprop.training.config import Config
from targetprop.tuning.space import Space


@dataclass(frozen=True)
class Plan:
    """What a study is.

    Attributes:
        preset: its name, or that of a YAML file.
        base: the configuration whose values are tuned; its seed is the sampler's too.
        space: the values.
        sampler: "tpe", "random" or "grid".
        prune: stop trials that are worse than the median of others at their epoch.
        folder: of the trials and the results.
    """

    preset: str
    base: Config
    space: Space
    sampler: str
    prune: bool
    folder: Path

    def record(self) -> dict[str, Any]:
        """What all processes of a study must agree on, as plain values."""
        found = {
            "preset": Path(self.preset).stem,
            "config": dict(config.flat(self.base.anywhere())),
            "space": {key: one.record() for key, one in self.space.items()},
            "sampler": self.sampler,
            "prune": self.prune,
            "folder": str(self.folder.absolute()),
        }
        return json.loads(json.dumps(found))


def apart(held: dict[str, Any], asked: dict[str, Any]) -> str:
    """The names of what differs in two records."""

    def named(record: dict[str, Any]) -> dict[str, Any]:
        ours = {k: v for k, v in record.items() if k not in ("config", "space")}
        spaced = {f"space of {k}": v for k, v in record.get("space", {}).items()}
        return {**ours, **record.get("config", {}), **spaced}

    a, b = named(held), named(asked)
    differ: Sequence[str] = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return ", ".join(differ)
