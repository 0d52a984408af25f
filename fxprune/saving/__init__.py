"""Saved networks: a folder that stands alone, and the network back from it."""

from fxprune.saving.loading import load, load_report
from fxprune.saving.saving import save

__all__ = ["load", "load_report", "save"]
