"""What ``attach`` returns: the handle of an attached model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.attach import coverage, refusals, surgery, tracking
from targetprop.attach.growth import plant
from targetprop.attach.hidden import Hidden
from targetprop.attach.install import Gains, give_back, is_paired, take
from targetprop.attach.learning import Learning
from targetprop.attach.link import Broadcast, backpropagating, links_of
from targetprop.attach.reminder import Reminder, remind
from targetprop.attach.rounds import Rounds
from targetprop.attach.sites import Site, is_sharded, learners, pairs
from targetprop.attach.table import table
from targetprop.feedback import FeedbackReport
from targetprop.maps import is_feedback
from targetprop.rules import Rule


class Feedback:
    """The feedback of an attached model.

    Attributes:
        model: the model.
        rule: what its maps send back.
        solver: how ω learn.
        learning: when, and what is remembered of each.
        sites: the maps that send a signal back.
        report: per map name, what its solver did in the last step.
        modules: the attached modules by name.
        link: what they share.
        first_pass: what watches the model's first eager passes.

    Example:
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> feedback = tp.attach(model)
        >>> opt = feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
        >>> list(feedback.maps), max(feedback.mismatch().values()) < 1e-5
        (['0', '1', '2'], True)
    """

    def __init__(
        self, model: nn.Module, example_inputs: Sequence[Any], rule: Rule, solver: Any, seed: int,
        only: str | None, skip: str | None, gains: Gains, beta: float | None, strict: bool,
    ):  # fmt: skip
        """See :func:`attach`."""
        self.model, self.rule, self.solver, self.seed = model, rule, solver, seed
        self.report: dict[str, FeedbackReport] = {}
        self.learning = Learning(rule, solver, seed, self.tracked)
        self._rounds = Rounds()
        self._undrawn: list[Site] = []
        self._late: surgery.Late | None = None
        self.first_pass: coverage.FirstPass | None = None
        self._broadcast: Any = None
        self._reminder: Reminder | None = None
        self.sites: list[Site] = []
        self._strict = strict
        adopting = bool(links_of(model))
        self.link, self.modules, left_out = take(model, rule, only, skip, gains, beta)
        if not self.modules:
            raise ValueError(
                f"{type(model).__name__} has no module with a linear map to attach (only={only!r}, "
                f"skip={skip!r}); such are nn.Linear, convolutions, attention and registered ones."
            )
        if self.link.handle is not None and self.link.handle.first_pass is not None:
            self.link.handle.first_pass.remove()  # its hooks are gone, and this handle has its own
        self.link.handle = self
        self._hidden: Hidden | None = None
        try:
            coverage.report(coverage.refused(model, left_out), strict)
            self.sites, last = plant(
                model, self.link, self.modules, example_inputs, left_out, strict, adopting, seed
            )
            self.first_pass = coverage.FirstPass(model, left_out, strict, self.link, example_inputs)
            if rule.direct and last is not None:
                self._broadcast = last.register_forward_hook(Broadcast(self.link))
            self._undrawn = [s for s in self.sites if s.omega is not None and s.omega.is_meta]
            if self._undrawn:
                self._late = surgery.Late(model, self.link)
            self._known = surgery.Known(model)
            self._hidden = Hidden(model)
            with torch.no_grad():
                self.learning.begin(self.learners())
            if self._tracks or solver.learns:
                where = model if is_paired(model) else None
                self._reminder = remind(self.learners(), self.link, where)
        except BaseException:
            self.detach()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Without the optimizers: torch copies and pickles those without their hooks."""
        return self.__dict__ | {"_rounds": Rounds()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copied or pickled handle, with its model."""
        self.__dict__.update(state)
        self.link.handle = self

    def draw_late(self) -> None:
        """Draw the ω of a model that was attached on the meta device, once it has left that."""
        self._undrawn = surgery.draw(self._undrawn, self.rule, self.seed)
        if not self._undrawn and self._late is not None:
            self._late.remove()

    def _look_after(self) -> None:
        """See to what was done to the model since ``attach``."""
        if not self.modules:
            raise RuntimeError(
                "this feedback was detached, and its model is the plain one; attach it again."
            )
        self.draw_late()
        for omega in self._omegas():
            omega.requires_grad_(False)  # model.requires_grad_(True) asks for all
        if not self.rule.direct:
            surgery.separate(self.sites)
            self.learning.admit(self.learners())
        gains = any(site.layout.form == "diagonal" for site in self.sites)
        surgery.tell_newcomers(self._known, self.link, gains, self._strict)

    def _omegas(self) -> list[nn.Parameter]:
        return [site.omega for site in self.sites if site.omega is not None]

    def learners(self) -> list[Site]:
        """A map for every ω that learns; several may share one."""
        return [] if self.rule.direct else learners(self.sites)

    def _pairs(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        """(θ, ω) of the tracked maps."""
        return pairs(self.sites) if self._tracks else ()

    @property
    def _tracks(self) -> bool:
        return not self.rule.direct and (self.rule.tracks or self.solver.tracking)

    def tracked(self, site: Site) -> bool:
        """Whether a map's ω gets the increments of its θ: a followed optimizer moves both."""
        both, learns = {id(site.theta), id(site.omega)}, site.theta is not None and not site.frozen
        return self._tracks and learns and any(both <= step.moved() for step in self._rounds.steps)

    @property
    def orphaned(self) -> bool:
        """Whether the optimizers whose steps tracked have all been deleted."""
        steps = self._rounds.steps
        return self._tracks and bool(steps) and all(step.optimizer is None for step in steps)

    @torch.no_grad()
    def step(self) -> None:
        """Probe the maps that are due; call it after every step unless ``follow`` does.

        A map under the solver's tolerance is probed ever more rarely; one over it, soon again.
        """
        self._look_after()
        self._learn(self.learners(), True)

    @torch.no_grad()
    def refresh(self) -> None:
        """Measure every map now if weights were loaded or an optimizer followed; mend what is off.

        An eager pass calls it then; where ω are sharded, the next step does the same.
        """
        sites, loads = self.learners(), self.link.loads
        elsewhere = refusals.called_with_weights() and not self.learning.knows(sites)
        if elsewhere or any(is_sharded(s.omega) or s.omega.is_meta for s in sites):
            return
        if loads.stale:
            self.report = self.learning.step(sites, True, apart=True)
        elif loads.unsure:
            self.learning.check(sites)
        self.learning.loads = loads.count
        self.link.loads.settle(self.modules.values())

    def _learn(self, sites: list[Site], leads: bool) -> None:
        """Probe those of ``sites`` that are due; ``leads``: it is the first of a round."""
        if self.first_pass is not None:
            self.first_pass.stepped([site.theta for site in self.sites])
        loads = self.link.loads
        if loads.unsure or self.learning.loads != loads.count:  # by this handle or by another
            self.learning.recheck(self.learners())
        self.learning.loads = loads.count
        self.learning.steps += leads
        found = self.learning.step(sites, loads.stale)
        self.report = found if leads else self.report | found
        self.link.taught += 1
        self.link.loads.settle(self.modules.values())

    def follow(self, optimizer: Any) -> Any:
        """Let ω learn with ``optimizer``: tracking before its step, probes, where due, after it.

        Tracking gives ω the finished gradient of θ within the step: equal increments keep ω − θ
        (Kolen and Pollack 1994); ω joins its θ's parameter group. Outside, ``ω.grad`` is None.

        Args:
            optimizer: any ``torch.optim.Optimizer``, also as wrapped by Lightning or accelerate.
                With several optimizers, follow each: the maps of each are probed after its steps.
                Call it before ``optimizer.load_state_dict``; state of θ is copied to ω.

        Returns:
            ``optimizer``, as ``configure_optimizers`` wants it.

        Raises:
            TypeError: it is no torch optimizer.
            ValueError: it trains no parameter of the model, or it is L-BFGS and the solver tracks.
            NotCovered: modules joined the model after ``attach(strict=True)``.
            RuntimeError: the feedback was detached.
        """
        inner = tracking.inner(optimizer)
        self._look_after()
        if self._rounds.has(inner):
            return optimizer
        own = (p for name, p in self.model.named_parameters() if not is_feedback(name))
        count = tracking.admit(inner, list(self._pairs()), own)
        if self.rule.tracks and count:
            tracking.warn_without_decay(inner)
        finite = self.link.beta is not None
        self._rounds.add(tracking.Step(inner, self._pairs, self._after, finite))
        if self.link.loads.stale:
            self.refresh()
        self.link.loads.unsure = True  # weights may have been drawn anew since attach
        self.learning.spread(self.learners())
        return optimizer

    @property
    def steps(self) -> int:
        """Steps of the feedback so far; with several optimizers, rounds of them."""
        return self.learning.steps

    @torch.no_grad()
    def _after(self, optimizer: Any) -> None:
        """Probe those maps whose turn it is that are due."""
        self._look_after()
        self._learn(*self._rounds.turn(optimizer, self.learners()))

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within it forward and backward are the plain model's, bit for bit: backpropagation."""
        with backpropagating(self.model):
            yield

    def mismatch(self) -> dict[str, float]:
        """‖B − θ‖_F/‖θ‖_F per map, B what its rule sends through (ω for most).

        A measure for you, from which no ω learns; of a registered map ‖A_B − A_θ‖_F/‖A_θ‖_F.

        Raises:
            ValueError: for a rule whose ω are not shaped like θ.
        """
        if self.rule.direct:
            raise ValueError("direct feedback alignment's ω have no θ to be compared with.")
        return {s.name: s.mismatch(self.rule) for s in self.sites if s.omega is not None}

    @property
    def beta(self) -> float | None:
        """The nudge of activations; None for an infinitesimal one."""
        return self.link.beta

    @property
    def followed(self) -> bool:
        """Whether an optimizer is followed, which the handle does not keep alive."""
        return any(step.optimizer is not None for step in self._rounds.steps)

    @property
    def maps(self) -> dict[str, nn.Module]:
        """The module of every map that sends a signal back, by the map's name in your model."""
        return {site.name: site.module for site in self.sites}

    def detach(self) -> nn.Module:
        """Give the plain model back: own classes, no ω; followed optimizers lose ω and hooks."""
        for step in self._rounds.steps:
            step.remove()
            if step.optimizer is not None:
                tracking.leave(step.optimizer, self._omegas())
        self._rounds = Rounds()
        for handle in (self.first_pass, self._broadcast, self._reminder, self._late, self._hidden):
            if handle is not None:
                handle.remove()
        give_back(self.model, self.modules)
        self.sites, self.modules = [], {}
        return self.model

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The model's ``state_dict`` without ω, which the plain model loads."""
        return {k: v for k, v in self.model.state_dict().items() if not is_feedback(k)}

    def state_dict(self) -> dict[str, Any]:
        """The solver's memory of every map; ω are in the model's own ``state_dict``."""
        return self.learning.state_dict() | self.link.loads.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, so that a run goes on as if it had not stopped.

        Raises:
            ValueError: it is of other maps, another rule or another solver.
        """
        self.learning.load_state_dict(state, self.learners())
        self.link.loads.load_state_dict(state)
        self.learning.loads = self.link.loads.count

    def __repr__(self) -> str:
        """A table: map, shape, rule, how ω learns, last mismatch."""
        return table(self)
