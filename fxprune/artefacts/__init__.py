"""Saved networks: a folder that stands alone, and the network back from it."""

from fxprune.artefacts.loading import load, load_report
from fxprune.artefacts.saving import save

__all__ = ["load", "load_report", "save"]
