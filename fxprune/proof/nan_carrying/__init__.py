"""Evaluates a network whose removed entries are NaN, which propagate with the values."""

from fxprune.proof.nan_carrying.calls import PositionError
from fxprune.proof.nan_carrying.mode import NanCarrying

__all__ = ["NanCarrying", "PositionError"]
