"""Credit assignment rules, one a file; all share ``algo.backward(x, y) -> Report``."""

import sys

from targetprop import rules
from targetprop.algorithms.attached import AttachedAlgorithm, carried
from targetprop.algorithms.backprop import Backprop
from targetprop.algorithms.base import Algorithm, Report
from targetprop.algorithms.ddtp_linear import DDTPLinear
from targetprop.algorithms.drl import DRL
from targetprop.algorithms.dtp import DTP
from targetprop.algorithms.fixed_weight_dtp import FixedWeightDTP
from targetprop.algorithms.jacobian_matching_oracle import JacobianMatchingOracle
from targetprop.algorithms.ldrl import LDRL
from targetprop.algorithms.parallel_ldrl import ParallelLDRL
from targetprop.algorithms.targetprop import TargetProp
from targetprop.feedback import SOLVERS
from targetprop.properties import found, markdown

FeedbackAlignment = carried(rules.FeedbackAlignment)
DirectFeedbackAlignment = carried(rules.DirectFeedbackAlignment)
WeightMirror = carried(rules.WeightMirror)
KolenPollack = carried(rules.KolenPollack)
SignSymmetry = carried(rules.SignSymmetry)

ALGORITHMS: dict[str, type[Algorithm]] = found(sys.modules[__name__], "rows")
ALGORITHMS |= {
    name: globals().get(rule.__name__) or carried(rule)
    for name, rule in rules.RULES.items()
    if "rows" in vars(rule)
}
"""Every algorithm by its name, which is the file's of its class or of its rule."""


def table() -> str:
    """What each algorithm assumes and costs, in Markdown: rows of algorithms, solvers and rules."""
    kinds = [ALGORITHMS["backprop"], *SOLVERS.values(), *ALGORITHMS.values()]
    return markdown(kind for kind in dict.fromkeys(kinds) if hasattr(kind, "rows"))


__all__ = [
    "ALGORITHMS",
    "DRL",
    "DTP",
    "LDRL",
    "Algorithm",
    "AttachedAlgorithm",
    "Backprop",
    "DDTPLinear",
    "DirectFeedbackAlignment",
    "FeedbackAlignment",
    "FixedWeightDTP",
    "JacobianMatchingOracle",
    "KolenPollack",
    "ParallelLDRL",
    "Report",
    "SignSymmetry",
    "TargetProp",
    "WeightMirror",
    "table",
]
