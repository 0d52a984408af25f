"""Exports of a pruned network to other formats, each run and compared before it is announced."""

from fxprune.exporting.exporter import FORMATS, export
from fxprune.exporting.result import Exported

__all__ = ["FORMATS", "Exported", "export"]
