"""What a compilation did, as data and on the terminal."""

from fxprune.reporting.graph_summary import graph_as_dict, render_graph
from fxprune.reporting.report import (
    MACS_MEANING,
    CostRow,
    FidelityRow,
    GoalRow,
    GroupRow,
    LatencyRow,
    OpaqueRow,
    PinnedRow,
    RecoveryRow,
    Report,
    ScoreRow,
)
from fxprune.reporting.text import as_text, print_report, render_report
from fxprune.util.tables import machine, plain_text, versions

__all__ = [
    "MACS_MEANING",
    "CostRow",
    "FidelityRow",
    "GoalRow",
    "GroupRow",
    "LatencyRow",
    "OpaqueRow",
    "PinnedRow",
    "RecoveryRow",
    "Report",
    "ScoreRow",
    "as_text",
    "graph_as_dict",
    "machine",
    "plain_text",
    "print_report",
    "render_graph",
    "render_report",
    "versions",
]
