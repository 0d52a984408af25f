"""fxprune: a structured-pruning compiler for PyTorch.

``compile(model, sample_input, ratio)`` takes a live network and returns a smaller, standalone ``torch.fx.GraphModule``.
"""

from fxprune.analysis import ChannelGraph
from fxprune.artefacts import load, save
from fxprune.compiling import (
    analyze,
    apply,
    compile,  # noqa: A004  the public name says what it does
    plan,
    recover,
    report,
)
from fxprune.criteria import known_criteria
from fxprune.distillation import Distilled, distill
from fxprune.errors import FxpruneError
from fxprune.exporting import Exported, export
from fxprune.migrating import migrate
from fxprune.planning import Plan
from fxprune.reporting import Report

__all__ = [
    "ChannelGraph",
    "Distilled",
    "Exported",
    "FxpruneError",
    "Plan",
    "Report",
    "analyze",
    "apply",
    "compile",
    "distill",
    "export",
    "known_criteria",
    "load",
    "migrate",
    "plan",
    "recover",
    "report",
    "save",
]
