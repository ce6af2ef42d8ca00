"""``targetprop.attach``: any module, any training loop."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from targetprop.attach.handle import Feedback
from targetprop.attach.install import Gains, is_paired
from targetprop.attach.kinds import kind_of
from targetprop.attach.link import AttachedModule, links_of
from targetprop.feedback import SOLVERS, Fixed, ProbeSolver
from targetprop.rules import Rule, rule_of


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

    ``loss.backward()`` now carries e through ω where it went through θᵀ; θ gets its local product:

        eⁿ⁻¹ = (∂ρ)ᵀ A_ωᵀ eⁿ,          ∇θⁿ = ∂⟨eⁿ, A_θ sⁿ⁻¹⟩/∂θ

    With the rule ``"ldrl"`` the ω learn from each map's own response to noise to be what θ is. That
    is difference target propagation with learned backprop targets (Ernoult et al., ICML 2022) and
    matched feedback in the limit of an infinitesimal nudge, where the carried quantity is
    (tⁿ − sⁿ)/β. Activations, attention, normalisation, sums and sharing are autograd's.

    Args:
        model: any module. It stays itself: class names, parameter names, hooks and ties are kept; ω
            are parameters called ``NAME.feedback_weight`` that need no gradient. A checkpoint of
            the plain model still loads strictly.
        example_inputs: given to ``model(*example_inputs)`` once, without a trace: they tell which
            maps read data and need no feedback, and what cannot be attached. Without them the first
            forward pass tells the latter.
        rule: ``"ldrl"``, ``"feedback_alignment"``, ``"direct_feedback_alignment"`` (needs example
            inputs), ``"kolen_pollack"``, ``"weight_mirror"``, ``"sign_symmetry"``, ``"symmetric"``,
            or a value of ``targetprop.rules``.
        solver: how ω learn: ``"predictive"`` (for L-DRL by default), ``"correlation"``,
            ``"coupled"``, ``"fixed"``, or one of their classes in ``targetprop.feedback`` with
            settings; None for the rule's own.
        seed: of ω and of the noise.
        only: a regular expression (``re.search``); modules whose name does not match are left out.
        skip: a regular expression; modules whose name matches are left out.
        gains: ``"exact"`` sends e through the γ of normalisations as autograd does; ``"learned"``
            gives them feedback gains (``NAME.feedback_gain``) of their own, so that no forward
            parameter is read on the way back.
        beta: a finite nudge for activations given as modules: they send (ψ(y) − ψ(y + d))/(βB),
            d = −βB·∂ℓ/∂y, for the loss as a mean over B samples. None: β → 0.
        strict: raise an error, not a warning, where part of the model cannot be attached.

    Returns:
        The handle: ``follow(optimizer)``, ``exact()``, ``mismatch()``, ``detach()`` and so on.

    Raises:
        TypeError: the model is no module, or the seed no integer.
        ValueError: an unknown rule, solver or setting, or a model without a map to attach.
        NotCovered: with ``strict``, for a model that would send part of its signal through θᵀ.

    Example:
        >>> import torch, targetprop as tp
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        >>> feedback = tp.attach(model, torch.randn(2, 8))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> optimizer = feedback.follow(optimizer)
        >>> x, y = torch.randn(32, 8), torch.randint(4, (32,))
        >>> nn.functional.cross_entropy(model(x), y).backward()
        >>> optimizer.step()
        >>> max(feedback.mismatch().values()) < 0.01
        True
    """
    refuse_odd(model, seed, strict, {"only": only, "skip": skip})
    chosen = rule_of(rule)
    # Of torch.compile, which compiles anew what has changed.
    model = getattr(model, "_orig_mod", model)
    if gains not in ("exact", "learned"):
        raise ValueError(f"gains={gains!r} is neither 'exact' nor 'learned'.")
    if beta is not None and not (type(beta) in (int, float) and 0 < beta < math.inf):
        raise ValueError(
            f"beta={beta!r} is no positive number; leave it out for an infinitesimal nudge."
        )
    if chosen.direct and not example_inputs:
        raise ValueError(
            "rule='direct_feedback_alignment' sends the output's error to inputs whose shapes it "
            "must know; give example inputs: attach(model, x, rule='direct_feedback_alignment')."
        )
    if is_paired(model) and (gains == "learned" or beta is not None):
        raise ValueError(
            "a network of targetprop.pair runs its normalisations and activations itself, so "
            "gains='learned' and beta=... would change nothing; attach the "
            "nn.Sequential that it was made of."
        )
    if any(isinstance(module, AttachedModule) for module in model.modules()):
        given = {
            "only": only,
            "skip": skip,
            "beta": beta,
            "gains": None if gains == "exact" else gains,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return adopted(model, example_inputs, chosen, solver, seed, given, strict)
    return Feedback(
        model,
        example_inputs,
        chosen,
        solver_of(solver, chosen),
        seed,
        only,
        skip,
        gains,
        beta,
        strict,
    )


def refuse_odd(model: Any, seed: Any, strict: Any, patterns: dict[str, Any]) -> None:
    """Refuse arguments that are nothing of their kind.

    Raises:
        TypeError: the model is no module, the seed no integer, or ``strict`` no truth.
        ValueError: the seed is out of range, or a pattern is no regular expression.
    """
    if not isinstance(model, nn.Module):
        shown = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"attach takes a torch.nn.Module, got {shown}; give a model that was made.")
    if not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} is no integer; give one, such as seed=0.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} is out of range; expected 0 to 2^63 - 1.")
    if not isinstance(strict, bool):
        raise TypeError(f"strict={strict!r} is neither True nor False.")
    for name, pattern in patterns.items():
        if pattern is not None and not isinstance(pattern, str):
            named = "|".join(map(str, pattern)) if isinstance(pattern, (list, tuple)) else "head"
            raise ValueError(
                f"{name}={pattern!r} is no regular expression; write one that matches names of "
                f"modules, such as {name}=r'^({named})$'."
            )
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"{name}={pattern!r} is no regular expression ({error}); write one that matches "
                f"names of modules, such as {name}=r'^head$'."
            ) from error


def adopted(
    model: nn.Module,
    inputs: Sequence[Any],
    rule: Rule,
    solver: Any,
    seed: int,
    given: dict[str, Any],
    strict: bool,
) -> Feedback:
    """A handle for a model that is attached already, as a copied or unpickled one is; its ω stay.

    Example inputs tell what it multiplies outside its maps; which of these have ω is settled.

    Raises:
        ValueError: it was attached by another rule, only a part of it was, or settings are
            ``given`` that are settled.
    """
    if given:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(
            f"the model is attached already, so {shown} would change nothing; call "
            "detach() of its feedback first."
        )
    left_out = {name for link in links_of(model) for name in link.left_out}
    for name, module in model.named_modules():
        kind = kind_of(module)
        if (
            kind
            and kind.name not in ("norm", "activation")
            and not isinstance(module, AttachedModule)
            and name not in left_out
        ):
            raise ValueError(
                f"a part of the model is attached already but '{name}' ({type(module).__name__}) "
                "is not; call detach() of the part's feedback first, then attach the whole."
            )
    if len(links_of(model)) > 1:
        raise ValueError(
            "parts of the model are attached, each with a feedback of its own; call detach() of "
            "each, then attach the whole."
        )
    for link in links_of(model):
        if link.rule != rule:
            raise ValueError(
                f"the model is attached by {link.rule} already, got {rule}; call detach() of its "
                "feedback first, or attach by the same rule."
            )
    return Feedback(
        model, inputs, rule, solver_of(solver, rule), seed, None, None, "exact", None, strict
    )


def solver_of(solver: Any, rule: Rule) -> Any:
    """The solver called ``solver``, or ``solver`` itself, or the rule's own for None.

    Raises:
        ValueError: one that cannot teach attached maps, or a rule that learns nothing.
    """
    own = rule.solver()
    if solver is None:
        return own
    able = [name for name, kind in SOLVERS.items() if issubclass(kind, ProbeSolver)]
    if isinstance(solver, str):
        if solver not in able:
            raise ValueError(
                f"unknown solver {solver!r} of attached maps; known are {', '.join(able)}."
            )
        solver = SOLVERS[solver]()
    if not isinstance(solver, ProbeSolver):
        raise ValueError(
            f"{type(solver).__name__} needs a layer's noisy pass and serves networks made by "
            f"targetprop.pair; attached maps take {', '.join(able)}."
        )
    if isinstance(own, Fixed) and not isinstance(solver, Fixed):
        raise ValueError(
            f"rule={rule.name!r} does not learn ω, so it takes no solver, got "
            f"{type(solver).__name__}; leave it out (a rule of yours that learns ω returns its "
            "solver from its method solver())."
        )
    if rule.name != "ldrl" and (
        not isinstance(solver, type(own)) or solver.tracking != own.tracking
    ):
        raise ValueError(
            f"rule={rule.name!r} learns ω by {own}, got {solver}, which makes another rule of it; "
            "use rule='ldrl' for that."
        )
    return solver
