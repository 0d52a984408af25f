"""What a compilation did, as data and on the terminal."""

from fxprune.reporting.environment import versions
from fxprune.reporting.graph_summary import AnalysedGraph, graph_as_dict, render_graph
from fxprune.reporting.printing import as_text, print_report, render_report
from fxprune.reporting.report import MACS_MEANING, GroupRow, OpaqueRow, PinnedRow, Report
from fxprune.reporting.tables import plain_text

__all__ = [
    "MACS_MEANING",
    "AnalysedGraph",
    "GroupRow",
    "OpaqueRow",
    "PinnedRow",
    "Report",
    "as_text",
    "graph_as_dict",
    "plain_text",
    "print_report",
    "render_graph",
    "render_report",
    "versions",
]
