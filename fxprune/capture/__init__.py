"""Capture: a live model becomes an FX graph whose nodes know their values on the meta device."""

from fxprune.capture.capturing import Captured, capture
from fxprune.capture.modes import Modes, capture_training, modes_of
from fxprune.capture.partial import capture_parts

__all__ = ["Captured", "Modes", "capture", "capture_parts", "capture_training", "modes_of"]
