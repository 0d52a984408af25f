"""Saved networks: a self-contained folder, and the network loaded from it.

>>> from fxprune.saving.values import PLAIN
>>> data = PLAIN.write((1, slice(None, 2)))  # as in graph.json
>>> data, PLAIN.read(data), PLAIN.print(data)
({'tuple': [1, {'slice': [None, 2, None]}]}, (1, slice(None, 2, None)), '(1, slice(None, 2, None))')
"""

from fxprune.saving.loading import load, load_report
from fxprune.saving.saving import save

__all__ = ["load", "load_report", "save"]
