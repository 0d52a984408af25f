"""fxprune: a structured-pruning compiler for PyTorch.

``compile(model, sample_input, ratio)`` takes a live network and returns a smaller, standalone ``torch.fx.GraphModule``.
Importing the package imports nothing else: each name, and each submodule, is found when it is first asked for, so that
the command line answers ``--help`` without waiting for torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxprune.analysis.solving import ChannelGraph
    from fxprune.api import (
        analyze,
        apply,
        compile,  # noqa: A004  the public name says what it does
        plan,
        recover,
        remove,
        report,
    )
    from fxprune.criteria import known_criteria
    from fxprune.distillation import Distilled, distill
    from fxprune.errors import FxpruneError
    from fxprune.planning import Plan
    from fxprune.planning.composing import migrate
    from fxprune.reporting import Report
    from fxprune.saving import load, save
    from fxprune.saving.comparing import Exported
    from fxprune.saving.exporting import export
else:
    from fxprune.util.registry import find_lazily, moved

    __getattr__, __dir__ = find_lazily(
        __name__,
        {
            "analysis.solving": ["ChannelGraph"],
            "saving": ["load", "save"],
            "api": ["analyze", "apply", "compile", "plan", "recover", "remove", "report"],
            "criteria": ["known_criteria"],
            "distillation": ["Distilled", "distill"],
            "errors": ["FxpruneError"],
            "saving.exporting": ["Exported", "export"],
            "planning.composing": ["migrate"],
            "planning": ["Plan"],
            "reporting": ["Report"],
        },
    )
    moved("fxprune.timing", "fxprune.saving.timing", ("Latency", "RUNTIMES", "measure_latency"))

__all__ = [
    "ChannelGraph", "Distilled", "Exported", "FxpruneError", "Plan", "Report", "analyze", "apply", "compile", "distill",
    "export", "known_criteria", "load", "migrate", "plan", "recover", "remove", "report", "save",
]  # fmt: skip
