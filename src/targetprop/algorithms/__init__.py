"""Credit assignment rules, one a file; all share ``algo.backward(x, y) -> Report``."""

from targetprop import rules
from targetprop.algorithms.attached import Attached, carried
from targetprop.algorithms.backprop import Backprop
from targetprop.algorithms.base import Algorithm, Report
from targetprop.algorithms.ddtp_linear import DDTPLinear
from targetprop.algorithms.drl import DRL
from targetprop.algorithms.dtp import DTP
from targetprop.algorithms.fixed_weight_dtp import FixedWeightDTP
from targetprop.algorithms.jacobian_matching_oracle import JacobianMatchingOracle
from targetprop.algorithms.ldrl import LDRL
from targetprop.algorithms.parallel_ldrl import ParallelLDRL
from targetprop.algorithms.table import table
from targetprop.algorithms.targetprop import TargetProp

FeedbackAlignment = carried(rules.FeedbackAlignment)
DirectFeedbackAlignment = carried(rules.DirectFeedbackAlignment)
WeightMirror = carried(rules.WeightMirror)
KolenPollack = carried(rules.KolenPollack)
SignSymmetry = carried(rules.SignSymmetry)

ALGORITHMS = {
    "backprop": Backprop,
    "ldrl": LDRL,
    "dtp": DTP,
    "targetprop": TargetProp,
    "fixed_weight_dtp": FixedWeightDTP,
    "parallel_ldrl": ParallelLDRL,
    "jacobian_matching_oracle": JacobianMatchingOracle,
    "drl": DRL,
    "ddtp_linear": DDTPLinear,
    "feedback_alignment": FeedbackAlignment,
    "direct_feedback_alignment": DirectFeedbackAlignment,
    "weight_mirror": WeightMirror,
    "kolen_pollack": KolenPollack,
    "sign_symmetry": SignSymmetry,
}

__all__ = [
    "ALGORITHMS",
    "DRL",
    "DTP",
    "LDRL",
    "Algorithm",
    "Attached",
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
