"""The pass after the proof: recovery, and what the report says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx, nn

from fxprune.analysis import ChannelGraph
from fxprune.checking import is_meta
from fxprune.errors import RecoveryError
from fxprune.options import Feed, setting
from fxprune.progress import Steps
from fxprune.recovery import Recovery, Work, run_recoveries
from fxprune.rewriting.pruned_module import PrunedGraphModule

__all__ = ["recovered"]


def recovered(
    graph: ChannelGraph,
    model: nn.Module,
    pruned: fx.GraphModule,
    recoveries: Sequence[Recovery],
    feed: Feed,
    steps: Steps,
    seed: int | None = None,
) -> fx.GraphModule:
    """The network after recovery, which changes it in place; what the proof proved is the network before."""
    if not recoveries:
        return pruned
    about = pruned.meta["fxprune"]
    if is_meta(model) or not isinstance(pruned, PrunedGraphModule):
        why = (
            "its weights are on the meta device" if is_meta(model) else "its own forward is opaque, so it has no graph"
        )
        raise RecoveryError(f"{type(model).__name__} cannot be recovered: {why}")
    plan = about["report"].plan
    seed = setting(plan, "seed", 0) if seed is None else seed
    with steps("recover"):
        rows = run_recoveries(recoveries, Work(graph, model, pruned, plan, feed.calibration, steps, seed))
    made = replace(about["report"], recovery=(*about["report"].recovery, *rows), seconds=dict(steps.seconds))
    pruned.meta["fxprune"] = {**about, "report": made}
    return pruned
