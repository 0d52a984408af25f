"""fxprune: a structured-pruning compiler for PyTorch.

``compile(model, sample_input, ratio)`` takes a live network and returns a smaller, standalone ``torch.fx.GraphModule``.
Importing the package imports nothing else: each name, and each submodule, is found when it is first asked for, so that
the command line answers ``--help`` without waiting for torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxprune.analysis import ChannelGraph
    from fxprune.artefacts import load, save
    from fxprune.compiling import (
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
    from fxprune.exporting import Exported, export
    from fxprune.migrating import migrate
    from fxprune.planning import Plan
    from fxprune.reporting import Report
else:
    from fxprune._names import find_lazily

    __getattr__, __dir__ = find_lazily(
        __name__,
        {
            "analysis": ["ChannelGraph"],
            "artefacts": ["load", "save"],
            "compiling": ["analyze", "apply", "compile", "plan", "recover", "remove", "report"],
            "criteria": ["known_criteria"],
            "distillation": ["Distilled", "distill"],
            "errors": ["FxpruneError"],
            "exporting": ["Exported", "export"],
            "migrating": ["migrate"],
            "planning": ["Plan"],
            "reporting": ["Report"],
        },
    )

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
    "remove",
    "report",
    "save",
]
