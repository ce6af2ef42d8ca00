"""The papers behind an algorithm, as BibTeX."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any


def entries() -> dict[str, str]:
    """Every entry of ``citations.bib`` by its key."""
    text = resources.files("targetprop").joinpath("citations.bib").read_text(encoding="utf-8")
    return {re.findall(r"\w+\{([^,]+),", entry)[0]: entry for entry in text.strip().split("\n\n")}


def cite(algo: Any) -> str:
    """BibTeX of the papers that ``algo`` as configured comes from; tracking adds Kolen–Pollack's.

    Args:
        algo: an algorithm, or the handle that ``attach`` returned.

    Example:
        >>> tp.cite(tp.attach(torch.nn.Linear(8, 4))).splitlines()[0]
        '@inproceedings{ernoult2022,'
    """
    keys = getattr(algo, "papers", None) or algo.rule.papers
    if getattr(algo.solver, "tracking", False):
        keys += ("akrout2019",)
    known = entries()
    return "\n\n".join(known[key] for key in dict.fromkeys(keys))
