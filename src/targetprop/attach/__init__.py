"""Any module, any training loop: feedback weights of their own for every linear map of a model."""

from targetprop.attach.coverage import NotCovered
from targetprop.attach.entry import attach
from targetprop.attach.handle import Feedback

__all__ = ["Feedback", "NotCovered", "attach"]
