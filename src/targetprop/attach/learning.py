"""What a solver does to the ω of one map: calibrate, probe; and what a rule does that draws them anew."""

from __future__ import annotations

from typing import Any

from torch import Generator

from targetprop.attach.growth import key_of
from targetprop.attach.sites import Site, whole
from targetprop.feedback import Fixed
from targetprop.feedback.memory import NEVER, Memory
from targetprop.rules import Rule
from targetprop.seeds import mixed

CALIBRATIONS = 20
"""Probes that ``attach`` makes of a map at most until it is under the solver's tolerance."""


def calibrate(site: Site, solver: Any, memory: Memory, seed: int, tracked: bool) -> bool:
    """Bring the ω of a map under the solver's tolerance, from noise alone; False where it cannot be probed yet."""
    if isinstance(solver, Fixed):
        memory.wait = NEVER
        return True
    if site.omega.is_meta:
        return False
    tolerance = getattr(solver, "tolerance", None)
    for _ in range(CALIBRATIONS):
        seen = site.probe()
        if seen is None:
            return False
        learned = solver.calibrate(seen, memory, mixed(seed, key_of(site.name), memory.probes), tracked)
        if learned is not None:
            site.write(learned)
        if tolerance is None or not memory.mismatch > tolerance:
            break
    return True


def probe(site: Site, solver: Any, memory: Memory, seed: int, tracked: bool) -> None:
    """Let the solver look at a map, and move its ω where it will."""
    learned = solver.probe(site.probe(), memory, mixed(seed, key_of(site.name), memory.probes), tracked)
    if learned is not None:
        site.write(learned)


def redraw(site: Site, rule: Rule, seed: int, step: int) -> None:
    """Draw ω anew for the next batch, where the rule does so."""
    if type(rule).redrawn is Rule.redrawn:
        return
    generator = Generator().manual_seed(mixed(seed, key_of(site.name), step, 1))
    omega = site.layout.of(whole(site.omega))
    field = site.layout.form == "field"
    matrices = omega.reshape(1, len(omega), -1) if field else site.layout.matrices(omega)
    new = rule.redrawn(matrices, generator)
    if new is not None:
        site.write(new.to(matrices).reshape(omega.shape) if field else new.to(matrices))
