"""How ω learn: what the solver remembers of each, which are due, what a step does to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator

from targetprop.attach.growth import key_of
from targetprop.attach.sites import Site, whole
from targetprop.feedback import FeedbackReport, ProbeSolver
from targetprop.feedback.memory import Memory
from targetprop.rules import Rule
from targetprop.seeds import mixed
from targetprop.telling import warn

CALIBRATIONS = 20
"""Probes that ``attach`` makes of a map at most until it is under the solver's tolerance."""


class Learning:
    """The learning of all ω of one model.

    Attributes:
        rule: what the maps send back.
        solver: how ω learn.
        seed: of the noise.
        tracked: whether the ω of a map gets the increments of its θ.
        memory: per map name, the solver's.
        steps: so far.
        loads: of the model, after which the maps were measured last.
    """

    def __init__(self, rule: Rule, solver: ProbeSolver, seed: int, tracked: Callable[[Site], bool]):
        """Of no map yet."""
        self.rule, self.solver, self.seed, self.tracked = rule, solver, seed, tracked
        self.memory: dict[str, Memory] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.steps = self.loads = 0
        self._tolerance: float = solver.limit
        self._weights: dict[str, tuple[Any, bool]] = {}
        self._unchecked: set[str] = set()
        self._unseen: set[str] = set()
        self._apart = False

    def begin(self, sites: Sequence[Site]) -> None:
        """Bring the ω of ``sites`` under the solver's tolerance, from noise alone."""
        self.admit(sites)
        with own_format(sites):
            for site in sites if self.solver.learns else ():
                self.calibrate(site)
                self._rest(site, self.memory[site.name])

    def calibrate(self, site: Site) -> bool:
        """Likewise one map; False until it can be probed: a registered one needs an input."""
        memory = self.memory[site.name]
        if site.omega.is_meta:
            return False
        for _ in range(CALIBRATIONS):
            seen = site.probe()
            if seen is None:
                return False
            learned = self.solver.calibrate(
                seen, memory, self._noise(site, memory), self.tracked(site)
            )
            if learned is not None:
                site.write(learned, self._apart)
            if not memory.mismatch > self._tolerance or self._tolerance == math.inf:
                break
        return True

    def admit(self, sites: Sequence[Site]) -> None:
        """Begin to remember maps that have an ω of their own only now."""
        for site in sites:
            if site.name not in self.memory:
                self.memory[site.name] = Memory()
                self._shapes[site.name] = tuple(site.layout.of(site.omega).shape)
                self._weights[site.name] = site.theta, site.frozen

    def last_theta(self, site: Site) -> Any:
        """θ as it stood in the last step, or when the map was first remembered."""
        return self._weights.get(site.name, (None, False))[0]

    def see(self, sites: Sequence[Site]) -> None:
        """Take the weights of ``sites``, which will be measured, for the model's own."""
        for site in sites:
            if site.name in self._weights:
                self._weights[site.name] = site.theta, self._weights[site.name][1]

    def knows(self, sites: Sequence[Site]) -> bool:
        """Whether the weights lie where those did that were seen last."""
        pairs = [(self.last_theta(site), site.theta) for site in sites]
        return all(
            a is b or (a is not None and b is not None and a.data_ptr() == b.data_ptr())
            for a, b in pairs
        )

    def recheck(self, sites: Sequence[Site]) -> None:
        """Measure every map at the next step: something was loaded."""
        self._unchecked = {site.name for site in sites}

    def spread(self, sites: Sequence[Site]) -> None:
        """As an optimizer is followed: check all once; before the first step, take turns."""
        self.recheck(sites)
        self.see(sites)
        interval = self.solver.probe_every
        for index, site in enumerate(sites if self.steps == 0 else ()):
            memory = self.memory[site.name]
            if self.tracked(site) and memory.probes:
                memory.interval, memory.wait = interval, interval + index % interval

    def check(self, sites: Sequence[Site]) -> None:
        """Measure every map now; one that θ has strayed from learns anew, in new storage."""
        self._unchecked, self._apart = set(), True
        self.see(sites)
        with own_format(sites):
            for site in sites if self.solver.learns else ():
                if self._has_strayed(site, self.memory[site.name]):
                    self.memory[site.name] = Memory()
                    site.omega.data = site.omega.data.clone()
                    self.calibrate(site)

    def step(
        self, sites: Sequence[Site], stale: bool, apart: bool = False
    ) -> dict[str, FeedbackReport]:
        """Probe what is due; all where weights were loaded without their ω (``stale``).

        ``apart``: ω move to new storage first, since a graph that waits may hold them as they were.
        """
        self._apart = apart
        for site in sites if apart else ():
            site.omega.data = site.omega.data.clone()
        if stale:
            self.memory = {name: Memory() for name in self.memory}
        with own_format(sites):
            return dict(self._probe_due(sites))

    def _probe_due(self, sites: Sequence[Site]) -> Iterator[tuple[str, FeedbackReport]]:
        """The maps whose turn it is, each with what was done to it."""
        for site in sites:
            redraw(site, self.rule, self.seed, self.steps)
            if not self.solver.learns:
                continue
            memory = self.memory[site.name]
            checking = site.name in self._unchecked
            self._unchecked.discard(site.name)
            if self._is_other(site) or (checking and self._has_strayed(site, memory)):
                memory = self.memory[site.name] = Memory()  # what it knows is of another θ
            before = memory.probes
            if not memory.tick():
                continue
            if before == 0:
                if not self.calibrate(site):
                    self._put_off(site, memory)
                    continue
            else:
                seen = site.probe()
                if seen is None:  # a registered map of a resumed run has seen no input yet
                    self._put_off(site, memory)
                    continue
                learned = self.solver.probe(
                    seen, memory, self._noise(site, memory), self.tracked(site)
                )
                if learned is not None:
                    site.write(learned, self._apart)
            self._rest(site, memory)
            yield site.name, FeedbackReport(memory.probes - before, mismatch=memory.mismatch)

    def _rest(self, site: Site, memory: Memory) -> None:
        """Let a map under tolerance whose θ does not learn wait as long as any may."""
        if site.frozen and memory.mismatch <= self._tolerance < math.inf:
            memory.wait = memory.interval = self.solver.probe_every_at_most

    def _put_off(self, site: Site, memory: Memory) -> None:
        """Try a map that has seen no input again at the next step."""
        memory.wait = 1
        self._tell_unseen(site)

    def _noise(self, site: Site, memory: Memory) -> int:
        """The seed of a map's next probe."""
        return mixed(self.seed, key_of(site.name), memory.probes)

    def _is_other(self, site: Site) -> bool:
        """Whether θ is another tensor than in the last step, computed now, or learns only now."""
        theta, frozen = self._weights.get(site.name, (site.theta, site.frozen))
        self._weights[site.name] = site.theta, site.frozen
        return theta is not site.theta or (frozen and not site.frozen)

    def _has_strayed(self, site: Site, memory: Memory) -> bool:
        """Whether θ moved without ω since calibration: by DDP's broadcast, a user's new draw."""
        seen = site.probe() if memory.mismatch < math.inf or not memory.probes else None
        return (
            seen is not None
            and not float(seen.mismatch(self._noise(site, memory))) <= self._tolerance
        )

    def _tell_unseen(self, site: Site) -> None:
        if site.name not in self._unseen:
            self._unseen.add(site.name)
            warn(
                f"the ω of '{site.name}' cannot learn before its module has run once outside "
                "torch.compile; give example inputs, attach(model, x), or run one batch eagerly."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside ω."""
        return {
            "steps": self.steps,
            "rule": self.rule.name,
            "solver": type(self.solver).__name__,
            "shapes": dict(self._shapes),
            "maps": {name: memory.state_dict() for name, memory in self.memory.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], sites: Sequence[Site]) -> None:
        """Restore what :meth:`state_dict` gave, for the ω of ``sites``.

        Raises:
            ValueError: it is of other maps, another rule or another solver.
        """
        if not isinstance(state, Mapping) or "maps" not in state:
            raise ValueError(
                "this is no state of a feedback; give what feedback.state_dict() returned, and the "
                "model's own to model.load_state_dict."
            )
        own = {"rule": self.rule.name, "solver": type(self.solver).__name__}
        for key, value in own.items():
            if state.get(key, value) != value:
                raise ValueError(
                    f"this feedback state is of {key} {state[key]}, but the "
                    f"model is attached by {value}."
                )
        shapes = {k: tuple(v) for k, v in state.get("shapes", self._shapes).items()}
        if set(state["maps"]) != set(self.memory) or shapes != self._shapes:
            odd = sorted(set(state["maps"]) ^ set(self.memory)) or sorted(
                k for k in self.memory if shapes.get(k) != self._shapes[k]
            )
            raise ValueError(
                f"this feedback state is of other maps than the model's: {', '.join(odd)} differ."
            )
        if type(state["steps"]) is not int or not 0 <= state["steps"] < 2**53:
            raise ValueError(f"this feedback state is of {state['steps']} steps, no such number.")
        restored = {site.name: Memory() for site in sites}
        for site in sites:
            size = site.layout.of(site.omega).numel()
            restored[site.name].load_state_dict(state["maps"][site.name], {size})
        self.memory.update(restored)
        self.steps, self._unchecked = state["steps"], set()


@contextmanager
def own_format(sites: Sequence[Site]) -> Iterator[None]:
    """Probes multiply in the format of θ, float32 at least, also where ``torch.autocast`` is on."""
    with ExitStack() as stack:
        for kind in {site.omega.device.type for site in sites} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


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
