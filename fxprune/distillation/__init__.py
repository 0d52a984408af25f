"""Distillation: trains a pruned network to match the outputs of the network that it was cut from."""

from fxprune.distillation.distilling import distill
from fxprune.distillation.hints import Hint
from fxprune.distillation.options import Distilled, SoftTargets

__all__ = ["Distilled", "Hint", "SoftTargets", "distill"]
