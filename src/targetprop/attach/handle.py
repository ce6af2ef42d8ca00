"""``attach`` and what it returns."""

from __future__ import annotations

import math
import re
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.parameter import UninitializedParameter

from targetprop.attach import coverage, tracking
from targetprop.attach.function import is_positionwise
from targetprop.attach.modules import KINDS, Attached, Broadcast, Link, attached_class, kind_of, links_of
from targetprop.attach.sites import Site, whole
from targetprop.feedback import SOLVERS, FeedbackReport, Fixed
from targetprop.feedback.memory import NEVER, Memory
from targetprop.laboratory.pairing import Network
from targetprop.maps import is_feedback
from targetprop.rules import Rule, rule_of
from targetprop.seeds import mixed

Gains = Literal["exact", "learned"]

CALIBRATIONS = 20
"""Probes that ``attach`` makes of a map at most until it is under the solver's tolerance."""


def attach(
    model: nn.Module,
    *example_inputs: Any,
    rule: str | Rule = "ldrl",
    solver: Any = None,
    seed: int = 0,
    only: str | None = None,
    skip: str | None = None,
    gains: Gains = "exact",
    beta: float | None = None,
    strict: bool = False,
) -> Feedback:
    r"""Give every linear map of ``model`` that sends a signal back feedback weights ω of its own.

    From now on ``loss.backward()`` carries e through ω where it carried it through θᵀ; each θ gets its local product:

        eⁿ⁻¹ = (∂ρ)ᵀ A_ωᵀ eⁿ,          ∇θⁿ = ∂⟨eⁿ, A_θ sⁿ⁻¹⟩/∂θ

    With the rule ``"ldrl"`` the ω learn from each map's own response to noise to be what θ is. That is difference target
    propagation with learned backprop targets (Ernoult et al., ICML 2022) and matched feedback in the limit of an infinitesimal
    nudge, where the carried quantity is (tⁿ − sⁿ)/β. Activations, attention, normalisation, sums and sharing are autograd's.

    Args:
        model: any module. It stays itself: class names, parameter names, hooks and ties are kept; ω are parameters called
            ``NAME.feedback_weight`` that need no gradient. A checkpoint of the plain model still loads strictly.
        example_inputs: given to ``model(*example_inputs)`` once, without a trace: they tell which maps read data and need no
            feedback, and what cannot be attached. Without them the first forward pass tells the latter.
        rule: ``"ldrl"``, ``"feedback_alignment"``, ``"direct_feedback_alignment"`` (needs example inputs),
            ``"kolen_pollack"``, ``"weight_mirror"``, ``"sign_symmetry"``, ``"symmetric"``, or a value of ``targetprop.rules``.
        solver: how ω learn: ``"predictive"`` (for L-DRL by default), ``"correlation"``, ``"coupled"``, ``"fixed"``, or one of
            their classes in ``targetprop.feedback`` with settings; None for the rule's own.
        seed: of ω and of the noise.
        only: a regular expression; modules whose name it does not match (``re.search``) are left alone.
        skip: a regular expression; modules whose name it matches are left alone.
        gains: ``"exact"`` sends e through the γ of normalisations as autograd does; ``"learned"`` gives them feedback gains
            (``NAME.feedback_gain``) of their own, so that no forward parameter is read on the way back.
        beta: a finite nudge for activations given as modules: they send (ψ(y) − ψ(y + d))/(βB), d = −βB·∂ℓ/∂y, for the loss
            as a mean over B samples. None: β → 0.
        strict: raise an error, not a warning, where part of the model cannot be attached.

    Returns:
        The handle: ``follow(optimizer)``, ``exact()``, ``mismatch()``, ``detach()`` and so on.

    Raises:
        ValueError: an unknown rule, solver or setting, or a model without a map to attach.
        NotCovered: with ``strict``, for a model that would send part of its signal through θᵀ.

    Example:
        >>> import torch, targetprop as tp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
        >>> feedback = tp.attach(model, torch.randn(2, 8))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> optimizer = feedback.follow(optimizer)
        >>> x, y = torch.randn(32, 8), torch.randint(4, (32,))
        >>> torch.nn.functional.cross_entropy(model(x), y).backward()
        >>> optimizer.step()
        >>> max(feedback.mismatch().values()) < 0.01
        True

    """
    chosen = rule_of(rule)
    if gains not in ("exact", "learned"):
        raise ValueError(f"gains={gains!r} is neither 'exact' nor 'learned'.")
    if beta is not None and not beta > 0:
        raise ValueError(f"beta={beta} is not positive; leave it out for an infinitesimal nudge.")
    if chosen.direct and not example_inputs:
        raise ValueError(
            "rule='direct_feedback_alignment' sends the output's error to inputs whose shapes it must know; give example "
            "inputs: attach(model, x, rule='direct_feedback_alignment')."
        )
    if is_paired(model) and (gains == "learned" or beta is not None):
        raise ValueError(
            "a network of targetprop.pair runs its normalisations and activations itself, so gains='learned' and beta=... "
            "would change nothing; attach the nn.Sequential that it was made of."
        )
    if any(isinstance(module, Attached) for module in model.modules()):
        return adopted(model, chosen, solver, seed)
    return Feedback(model, example_inputs, chosen, solver_of(solver, chosen), seed, only, skip, gains, beta, strict)


def adopted(model: nn.Module, rule: Rule, solver: Any, seed: int) -> Feedback:
    """A handle for a model that is attached already, as a copied or unpickled one is; its ω stay.

    Raises:
        ValueError: it was attached by another rule.

    """
    for link in links_of(model):
        if link.rule != rule:
            raise ValueError(
                f"the model is attached by {link.rule} already, got {rule}; call detach() of its feedback first, or attach by "
                "the same rule."
            )
    return Feedback(model, (), rule, solver_of(solver, rule), seed, None, None, "exact", None, False)


def solver_of(solver: Any, rule: Rule) -> Any:
    """The solver called ``solver``, or ``solver`` itself, or the rule's own for None.

    Raises:
        ValueError: one that cannot teach attached maps, or a rule that learns nothing.

    """
    own = rule.solver()
    if solver is None:
        return own
    able = [name for name, kind in SOLVERS.items() if hasattr(kind, "probe")]
    if isinstance(solver, str):
        if solver not in able:
            raise ValueError(f"unknown solver {solver!r} of attached maps; known are {', '.join(able)}.")
        solver = own if isinstance(own, SOLVERS[solver]) else SOLVERS[solver]()
    if not hasattr(solver, "probe"):
        raise ValueError(
            f"{type(solver).__name__} needs a layer's noisy pass and serves networks made by targetprop.pair; attached maps "
            f"take {', '.join(able)}."
        )
    if isinstance(own, Fixed) and not isinstance(solver, Fixed):
        raise ValueError(f"rule={rule.name!r} does not learn ω, so it takes no solver, got {type(solver).__name__}.")
    return solver


def key_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return zlib.crc32(name.encode())


class Feedback:
    """The feedback of an attached model.

    Attributes:
        model: the model.
        rule: what its maps send back.
        solver: how ω learn.
        sites: the maps that send a signal back.
        report: per map name, what its solver did in the last step.

    """

    def __init__(
        self, model: nn.Module, example_inputs: Sequence[Any], rule: Rule, solver: Any, seed: int, only: str | None,
        skip: str | None, gains: Gains, beta: float | None, strict: bool,
    ):  # fmt: skip
        """See :func:`attach`."""
        self.model, self.rule, self.solver, self.seed = model, rule, solver, seed
        self.report: dict[str, FeedbackReport] = {}
        self.steps = 0
        self._followed: list[tracking.Step] = []
        self._first: coverage.FirstPass | None = None
        self._broadcast: Any = None
        self._reminder: tracking.Reminder | None = None
        self.sites: list[Site] = []
        adopting = bool(links_of(model))
        self._modules, left_out = self._take(only, skip, gains, beta)
        if not self._modules:
            raise ValueError(
                f"{type(model).__name__} has no module with a linear map to attach (only={only!r}, skip={skip!r}); such are "
                "nn.Linear, convolutions, nn.MultiheadAttention, and what targetprop.register was told."
            )
        self._link.handle = weakref.ref(self)
        self._ignored_before = list(getattr(model, "_ddp_params_and_buffers_to_ignore", []))
        try:
            coverage.report(coverage.refused(model, left_out), strict)
            reads, shapes, last = set(), {}, None
            if (adopting or is_paired(model)) and rule.own_feedback:  # what only reads data was given no ω, and needs none
                reads = {id(m) for m in self._modules.values() if not any(map(is_feedback, m._parameters))}
            if example_inputs:
                reads, shapes, last = self._look(example_inputs, left_out, strict)
            else:
                self._first = coverage.FirstPass(model, left_out, strict, self._link)
            self.sites = self._sites(reads)
            self._grow(shapes, last, adopting)
            self._memory = {site.name: Memory() for site in self._learners()}
            self._calibrate()
            watched = next((s for s in self._learners() if s.theta is not None and not s.frozen), None)
            if watched is not None and (self._tracks or not isinstance(solver, Fixed)):
                self._reminder = tracking.Reminder(model, watched.module, watched.layout.weight, self._link)
        except BaseException:
            self.detach()
            raise

    def _take(
        self, only: str | None, skip: str | None, gains: Gains, beta: float | None
    ) -> tuple[dict[str, Attached], list[str]]:
        """Make the model's maps attached modules; returns them and the names of those that the user left out."""
        taken, left_out = {}, []
        link = next((m._feedback for m in self.model.modules() if isinstance(m, Attached)), None)
        self._link = link or Link(self.rule, self.rule.direct, beta=beta)
        for name, module in self.model.named_modules():
            kind = kind_of(module)
            if link is not None:
                if isinstance(module, Attached):
                    module._feedback = link
                    taken[name] = module
                continue
            chosen = (only is None or re.search(only, name)) and not (skip is not None and re.search(skip, name))
            if not chosen:
                left_out.append(name)
                continue
            if kind is None or (kind.name == "norm" and gains == "exact") or (kind.name == "activation" and beta is None):
                continue
            if kind.name == "norm" and getattr(module, "weight", None) is None:
                continue
            lazy = [key for key, p in module.named_parameters(recurse=False) if isinstance(p, UninitializedParameter)]
            if lazy:
                raise ValueError(
                    f"'{name}' ({type(module).__name__}) has no shape yet; run one batch through the model before attach."
                )
            module.__class__ = attached_class(type(module), kind)
            module._feedback = self._link  # type: ignore[assignment]
            taken[name] = module
        if not any(KINDS[m._feedback_kind].layouts(m, self.rule.direct) for m in taken.values()):
            for module in taken.values():
                release(module, is_paired(self.model))
            return {}, left_out
        return taken, left_out

    def _look(self, example_inputs: Sequence[Any], left_out: Sequence[str], strict: bool) -> tuple[set, dict, Any]:
        """What the example inputs show: the modules that only read data, shapes per module, the last map's module."""
        rule, self._link.rule = self._link.rule, rule_of("symmetric")  # no ω yet
        try:
            watch, calls = coverage.example_pass(self.model, example_inputs, left_out)
        finally:
            self._link.rule = rule
        coverage.report(coverage.sentences(watch.found), strict)
        sends = {id(module) for module, needs, _ in calls if needs}
        reads = {id(module) for module, _, _ in calls} - sends
        shapes = {id(module): shape for module, _, shape in calls}
        maps = [module for module, _, _ in calls if module._feedback_kind not in ("norm", "activation")]
        return reads, shapes, maps[-1] if maps else None

    def _sites(self, reads: set) -> list[Site]:
        """The maps of all modules that send a signal back."""
        sites = []
        for name, module in self._modules.items():
            if id(module) in reads:
                continue
            for layout in KINDS[module._feedback_kind].layouts(module, self.rule.direct):
                if self.rule.direct:
                    layout = replace(layout, feedback=f"direct_{layout.feedback}")
                sites.append(Site(".".join(filter(None, (name, layout.suffix))), module, layout))
        return sites

    def _grow(self, shapes: Mapping[int, Any], last: Any, adopting: bool) -> None:
        """Give every map its ω; maps with one θ share one ω."""
        shared: dict[tuple, nn.Parameter] = {}
        if self.rule.direct and last is not None:
            self._broadcast = last.register_forward_hook(Broadcast(self._link))
        for site in self.sites:
            if not self.rule.own_feedback or site.omega is not None:
                if not adopting and type(self.rule).initial is not Rule.initial:  # a paired layer's own is no such draw
                    self._fill(site.omega.data, site)
                continue
            weight = site.array()
            key = (id(site.theta), site.layout.form, site.layout.groups, site.layout.feedback)
            if site.theta is None or key not in shared or self.rule.direct:
                omega = torch.empty_like(weight)
                if self.rule.direct and site.layout.form != "diagonal":
                    omega = self._direct(site, shapes, shapes[id(last)][1], weight)
                elif not weight.is_meta:
                    self._fill(omega, site)
                shared[key] = nn.Parameter(omega, requires_grad=False)
            site.module.register_parameter(site.layout.feedback, shared[key])
        omegas = [name for name, p in self.model.named_parameters(remove_duplicate=False) if self._is_omega(p)]
        if omegas:
            self.model._ddp_params_and_buffers_to_ignore = [*self._ignored_before, *omegas]  # type: ignore[assignment]

    def _fill(self, omega: Tensor, site: Site) -> None:
        """ω at first: the rule's draw, one map at a time where several share the array."""
        rows = site.layout.part[1] if site.layout.part else omega.shape[0]
        for start in range(0, omega.shape[0], rows if site.layout.part else max(1, omega.shape[0])):
            part = omega[start : start + rows] if site.layout.part else omega
            generator = Generator().manual_seed(mixed(self.seed, key_of(site.name), start))
            if site.layout.form == "field":
                drawn = self.rule.initial((1, part.shape[0], part[0].numel()), generator).reshape(part.shape)
            else:
                drawn = self.rule.initial(tuple(site.layout.matrices(part).shape), generator)
                drawn = site.layout.restore(drawn, part.shape)
            part.copy_(drawn)

    def _direct(self, site: Site, shapes: Mapping[int, Any], error: torch.Size, like: Tensor) -> Tensor:
        """The ω of direct feedback: (numbers of an error, numbers of an input)."""
        inputs = shapes[id(site.module)][0] if id(site.module) in shapes else None
        if inputs is None:
            raise ValueError(f"'{site.name}' was not reached by the example inputs, so its direct feedback has no shape.")
        x = inputs["qkv".index(site.layout.suffix[0]) if site.layout.suffix else 0]
        per_position = is_positionwise(error, x)
        if not per_position and error[0] != x[0]:
            raise ValueError(
                f"'{site.name}' reads {tuple(x)} while the output's error is {tuple(error)}; direct feedback alignment needs "
                "the samples in the first dimension of both (batch_first=True, say)."
            )
        shape = (error[-1], x[-1]) if per_position else (error[1:].numel(), x.numel() // error[0])
        generator = Generator().manual_seed(mixed(self.seed, key_of(site.name)))
        return self.rule.initial(shape, generator).to(like)

    def _is_omega(self, parameter: nn.Parameter) -> bool:
        return any(parameter is site.omega for site in self.sites)

    def _learners(self) -> list[Site]:
        """The maps whose ω learn, each ω once."""
        seen, learners = set(), []
        for site in self.sites:
            key = (id(site.omega), site.layout.part)
            if site.omega is None or key in seen or self.rule.direct:
                continue
            seen.add(key)
            learners.append(site)
        return learners

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(θ, ω) of the tracked maps."""
        seen = set()
        for site in self.sites:
            theta, omega = site.theta, site.omega
            if theta is None or omega is None or not theta.requires_grad or id(omega) in seen or not self._tracks:
                continue
            seen.add(id(omega))
            yield theta, omega

    @property
    def _tracks(self) -> bool:
        return not self.rule.direct and (self.rule.tracks or getattr(self.solver, "tracking", False))

    def _tracked(self, site: Site) -> bool:
        """Whether a map's ω gets the increments of its θ: an optimizer is followed, and θ is a parameter that learns."""
        return self._tracks and bool(self._followed) and site.theta is not None and not site.frozen

    def _calibrate(self) -> None:
        """Bring every ω under the solver's tolerance, from noise alone."""
        for site in self._learners():
            self._calibrated(site)

    @torch.no_grad()
    def _calibrated(self, site: Site) -> bool:
        """Calibrate one map; False where it cannot be probed yet."""
        memory = self._memory[site.name]
        if isinstance(self.solver, Fixed):
            memory.wait = NEVER
            return True
        if site.omega.is_meta:
            return False
        tolerance = getattr(self.solver, "tolerance", None)
        for _ in range(CALIBRATIONS):
            probe = site.probe()
            if probe is None:
                return False
            seed = mixed(self.seed, key_of(site.name), memory.probes)
            learned = self.solver.calibrate(probe, memory, seed, self._tracked(site))
            if learned is not None:
                site.write(learned)
            if tolerance is None or not memory.mismatch > tolerance:
                break
        return True

    @torch.no_grad()
    def step(self) -> None:
        """Probe the maps that are due; ``follow`` calls it after every step of the optimizer, else call it yourself.

        A map that stays under the solver's tolerance is probed ever more rarely, the interval doubling up to the solver's
        maximum; one that is over is corrected, and probed soon again. Weights loaded without their ω are probed at once.
        """
        self.steps += 1
        self._forget_reminder()
        if self._link.stale and not isinstance(self.solver, Fixed):
            for memory in self._memory.values():
                memory.wait, memory.mismatch = 0, math.inf
        self._link.stale = False
        report = {}
        for site in self._learners():
            self._redraw(site)
            memory = self._memory[site.name]
            settled = site.frozen and memory.mismatch <= getattr(self.solver, "tolerance", -1)
            if settled or not memory.due():
                continue
            if memory.probes == 0 and not isinstance(self.solver, Fixed):
                if not self._calibrated(site):
                    memory.wait = 1
                    continue
            else:
                probe: Any = site.probe()
                seed = mixed(self.seed, key_of(site.name), memory.probes)
                learned = self.solver.probe(probe, memory, seed, self._tracked(site))
                if learned is not None:
                    site.write(learned)
            report[site.name] = FeedbackReport(1, mismatch=torch.tensor(memory.mismatch))
        self.report = report

    def _redraw(self, site: Site) -> None:
        generator = Generator().manual_seed(mixed(self.seed, key_of(site.name), self.steps, 1))
        omega = site.layout.of(whole(site.omega))
        matrices = omega if site.layout.form == "field" else site.layout.matrices(omega)
        new = self.rule.redrawn(matrices, generator)
        if new is not None:
            site.write(new.to(matrices))

    def follow(self, optimizer: Any) -> Any:
        """Let ω learn with ``optimizer``: tracking before its step, probes, where due, after it.

        Tracking gives ω the finished gradient of θ within the step, so that equal increments keep ω − θ (Kolen and Pollack
        1994); ω joins the parameter group of its θ, whatever the optimizer was built with. Outside
        the step ``ω.grad`` is None.

        Args:
            optimizer: any ``torch.optim.Optimizer``, also as wrapped by Lightning or accelerate. With several optimizers,
                follow each. Call it before ``optimizer.load_state_dict``.

        Returns:
            ``optimizer``, so that ``return feedback.follow(optimizer)`` can end ``configure_optimizers``.

        Raises:
            TypeError: it is no torch optimizer.
            ValueError: it trains no parameter of the attached maps.

        """
        inner = tracking.inner(optimizer)
        if any(step.optimizer is inner for step in self._followed):
            return optimizer
        pairs = list(self._pairs())
        count = tracking.join(inner, pairs)
        known = {id(p) for group in inner.param_groups for p in group["params"]}
        if not any(id(p) in known for p in self.model.parameters() if not self._is_omega(p)):
            raise ValueError(
                "the optimizer trains no parameter of the attached model; build it from model.parameters() of the model that "
                "was attached (after fully_shard, where that replaces them)."
            )
        if self.rule.tracks and count:
            tracking.warn_without_decay(inner)
        self._followed.append(tracking.Step(inner, self._pairs, self._after, self._link.beta is not None))
        self._forget_reminder()
        for index, site in enumerate(self._learners()):
            memory, interval = self._memory[site.name], getattr(self.solver, "probe_every", 1)
            if self._tracked(site) and memory.probes and memory.wait < NEVER:
                memory.interval, memory.wait = interval, interval + index % interval  # not all in one step
        return optimizer

    def _forget_reminder(self) -> None:
        if self._reminder is not None:
            self._reminder.remove()
            self._reminder = None

    def _after(self, optimizer: Any) -> None:
        """With several optimizers the first one's steps count."""
        if self._followed and self._followed[0].optimizer is optimizer:
            self.step()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within it the model's forward and backward are the plain model's, bit for bit: backpropagation."""
        before, self._link.exact = self._link.exact, True
        try:
            yield
        finally:
            self._link.exact = before

    def mismatch(self) -> dict[str, float]:
        """‖A_ω − A_θ‖_F/‖A_θ‖_F per map, of the arrays as they are now: a measure for you, which no ω learns from.

        Raises:
            ValueError: for a rule whose ω are not shaped like θ.

        """
        if self.rule.direct:
            raise ValueError("direct feedback alignment sends errors past the maps: its ω have no θ to be compared with.")
        return {site.name: site.mismatch() for site in self.sites if site.omega is not None}

    @property
    def papers(self) -> tuple[str, ...]:
        """Keys of the papers that the rule comes from, for ``targetprop.cite``."""
        return self.rule.papers

    @property
    def beta(self) -> float | None:
        """The nudge of activations; None for an infinitesimal one."""
        return self._link.beta

    @property
    def followed(self) -> bool:
        """Whether an optimizer is followed."""
        return bool(self._followed)

    @property
    def maps(self) -> dict[str, nn.Module]:
        """The module of every map that sends a signal back, by the map's name in your model."""
        return {site.name: site.module for site in self.sites}

    def detach(self) -> nn.Module:
        """Give the model back as it was: its own classes, no ω; optimizers that followed lose ω and hooks."""
        for step in self._followed:
            step.remove()
            tracking.leave(step.optimizer, [site.omega for site in self.sites if site.omega is not None])
        self._followed = []
        for handle in (self._first, self._broadcast, self._reminder):
            if handle is not None:
                handle.remove()
        for module in self._modules.values():
            release(module, is_paired(self.model))
        if self._ignored_before:
            self.model._ddp_params_and_buffers_to_ignore = self._ignored_before  # type: ignore[assignment]
        elif hasattr(self.model, "_ddp_params_and_buffers_to_ignore"):
            del self.model._ddp_params_and_buffers_to_ignore
        self.sites, self._modules = [], {}
        return self.model

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The model's ``state_dict`` without ω, which the plain model loads."""
        return {name: value for name, value in self.model.state_dict().items() if not is_feedback(name)}

    def state_dict(self) -> dict[str, Any]:
        """What is remembered beside ω, which are in the model's own ``state_dict``: the solver's memory of every map."""
        return {
            "steps": self.steps,
            "maps": {name: memory.state_dict() for name, memory in self._memory.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, so that a run goes on as if it had not stopped.

        Raises:
            ValueError: it is of other maps.

        """
        if set(state["maps"]) != set(self._memory):
            odd = sorted(set(state["maps"]) ^ set(self._memory))
            raise ValueError(f"this feedback state is of other maps than the model's: {', '.join(odd)} differ.")
        self.steps = state["steps"]
        for name, memory in state["maps"].items():
            self._memory[name].load_state_dict(memory)
        self._link.stale = False

    def __repr__(self) -> str:
        """A table: map, shape, rule, how ω learns, last mismatch."""
        rows = [("map", "θ", "rule", "ω", "mismatch")]
        learners = {site.name for site in self._learners()}
        for site in self.sites:
            memory = self._memory.get(site.name)
            how = self._how(site) if site.name in learners or self.rule.direct else "shared"
            last = "" if memory is None or memory.mismatch == math.inf else f"{memory.mismatch:.2g}"
            shape = "×".join(str(size) for size in site.layout.of(site.array()).shape)
            rows.append((site.name or "(model)", shape, self.rule.name, how, last))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)

    def _how(self, site: Site) -> str:
        """How a map's ω learns, in a few words."""
        if not self.rule.own_feedback:
            return "is θ"
        words = []
        if self._tracked(site):
            words.append("tracked")
        if not isinstance(self.solver, Fixed):
            words.append("calibrated once" if site.frozen else "probed")
        return ", ".join(words) or "fixed"


def is_paired(model: nn.Module) -> bool:
    """Whether layers of ``targetprop.pair`` are part of it, whose ω are theirs."""
    return any(isinstance(module, Network) for module in model.modules())


def release(module: Attached, paired: bool = False) -> None:
    """Give a module back its class; ω that came with a paired layer stay."""
    for name in [name for name in module._parameters if is_feedback(name)]:
        if not (paired and name in ("feedback_weight", "feedback_bias")):
            del module._parameters[name]
    base = type(module)._feedback_base
    for name in ("_feedback", "_feedback_shape"):
        module.__dict__.pop(name, None)
    if type(module) is not attached_class(base, KINDS[type(module)._feedback_kind]):
        warnings.warn(
            f"{type(module).__name__} got another class after attach (by FSDP or a parametrisation); it stays attached.",
            UserWarning,
            stacklevel=3,
        )
        return
    module.__class__ = base  # type: ignore[assignment]
