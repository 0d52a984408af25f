"""Reports on compilations, as data and on the terminal.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> fxprune.report(fxprune.compile(net, torch.randn(1, 4), 0.5)).headline.split(" and ")[0]
'50.0% of the multiply-accumulates of convolution, linear'
"""

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
from fxprune.reporting.summarising import graph_as_dict, render_graph
from fxprune.reporting.text import as_text, print_report, render_report
from fxprune.util.tables import machine, plain_text, versions

__all__ = [
    "MACS_MEANING", "CostRow", "FidelityRow", "GoalRow", "GroupRow", "LatencyRow", "OpaqueRow", "PinnedRow",
    "RecoveryRow", "Report", "ScoreRow", "as_text", "graph_as_dict", "machine", "plain_text", "print_report",
    "render_graph", "render_report", "versions",
]  # fmt: skip
