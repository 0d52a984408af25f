"""Evaluation of a network whose removed entries are NaN and travel with the values."""

from .calls import PositionError
from .mode import NanCarrying

__all__ = ["NanCarrying", "PositionError"]
