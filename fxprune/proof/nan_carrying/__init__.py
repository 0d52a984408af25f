"""Evaluation of a network whose removed entries are NaN and travel with the values."""

from fxprune.proof.nan_carrying.calls import PositionError
from fxprune.proof.nan_carrying.mode import NanCarrying

__all__ = ["NanCarrying", "PositionError"]
