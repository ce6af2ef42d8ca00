"""The handle of an attached model, printed."""

from __future__ import annotations

import math
from typing import Any

from targetprop.attach.sites import Site


def table(feedback: Any) -> str:
    """Map, shape, rule, how ω learns and the last mismatch, a line a map; what a nudge reaches."""
    rows = [("map", "θ", "rule", "ω", "mismatch")]
    learners = {site.name for site in feedback.learners()}
    for site in feedback.sites:
        memory = feedback.learning.memory.get(site.name)
        shared = site.omega is not None and site.name not in learners and not feedback.rule.direct
        how = "shared" if shared else how_it_learns(feedback, site)
        last = math.inf if memory is None or feedback.link.loads.stale else memory.mismatch
        shape = "×".join(str(size) for size in site.layout.of(site.array()).shape)
        rows.append(
            (
                site.name or "(model)",
                shape,
                feedback.rule.name,
                how,
                "" if last == math.inf else f"{last:.2g}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    nudged = [
        f"'{name}' ({type(module).__name__})"
        for name, module in feedback.modules.items()
        if module._feedback_kind == "activation"
    ]
    told = [f"nudged by β = {feedback.beta}: {', '.join(nudged)}"] if nudged else []
    return "\n".join([*lines, *told])


def how_it_learns(feedback: Any, site: Site) -> str:
    """How a map's ω learns, in a few words."""
    if not feedback.rule.own_feedback:
        return "is θ"
    words = []
    if feedback.tracked(site):
        words.append("tracked")
    elif feedback.orphaned:
        words.append("tracked until its optimizer was gone")
    if feedback.solver.learns:
        words.append("calibrated, rarely checked" if site.frozen else "probed")
    return ", ".join(words) or "fixed"
