"""Capture: a live model becomes an FX graph whose nodes know their values on the meta device."""

from fxprune.capture.capturing import Captured, capture, capture_training
from fxprune.capture.partial import capture_parts

__all__ = ["Captured", "capture", "capture_parts", "capture_training"]
