"""Capture: a live model becomes an FX graph whose nodes know their values on the meta device."""

from fxprune.capture.capturing import Captured, capture, capture_training

__all__ = ["Captured", "capture", "capture_training"]
