"""Modern small models, ordinary modules, for ``targetprop.attach``."""

from targetprop.models.char_gpt import CharGPT
from targetprop.models.resnet20 import resnet20
from targetprop.models.vit import vit

MODELS = {"resnet20": resnet20, "vit": vit}
"""Image classifiers: ``make(in_shape, classes, **options)``."""

__all__ = ["MODELS", "CharGPT", "resnet20", "vit"]
