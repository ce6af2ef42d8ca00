"""What an attached map sends back: one rule a file."""

from __future__ import annotations

import difflib
import sys

from targetprop.properties import found
from targetprop.rules.direct_feedback_alignment import DirectFeedbackAlignment
from targetprop.rules.feedback_alignment import FeedbackAlignment
from targetprop.rules.kolen_pollack import KolenPollack
from targetprop.rules.ldrl import LDRL
from targetprop.rules.rule import Rule
from targetprop.rules.sign_symmetry import SignSymmetry
from targetprop.rules.symmetric import Symmetric
from targetprop.rules.weight_mirror import WeightMirror

RULES: dict[str, type[Rule]] = found(sys.modules[__name__], "equation")
"""Every rule by its name, which is its file's."""


def rule_of(rule: str | Rule) -> Rule:
    """The rule called ``rule`` with its defaults, or ``rule`` itself.

    Raises:
        ValueError: for an unknown name (the sentence gives the nearest one), a class instead of a
            value, or a rule of yours without a name, an equation or papers.

    Example:
        >>> rule_of("sign_symmetry")
        SignSymmetry(variant='uSF')
    """
    if isinstance(rule, Rule):
        missing = [name for name in ("name", "equation", "papers") if not hasattr(rule, name)]
        if missing:
            raise ValueError(
                f"the rule {type(rule).__name__} has no {' and no '.join(missing)}; set the class "
                f"attribute, such as {missing[0]} = ..."
            )
        return rule
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise ValueError(f"rule={rule.__name__} is a class; give a value of it: {rule.__name__}().")
    if rule in RULES:
        return RULES[rule]()
    near = difflib.get_close_matches(str(rule), RULES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(RULES)}."
    raise ValueError(f"unknown rule {rule!r}; {hint}")


__all__ = [
    "LDRL",
    "RULES",
    "DirectFeedbackAlignment",
    "FeedbackAlignment",
    "KolenPollack",
    "Rule",
    "SignSymmetry",
    "Symmetric",
    "WeightMirror",
    "rule_of",
]
