"""Seconds of the pass, and of torch-pruning in the same process."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from typing import Any

from torch import fx

import fxprune
from benchmarks.harness.processes import Outcome, Record
from benchmarks.networks import Network, find_network
from benchmarks.rivals import torch_pruning_recipe
from benchmarks.speed.clock import Clock
from benchmarks.speed.warming import warm_up

PASSES = ("capture", "analyze", "score", "plan", "rewrite")
COLUMNS = ["model", "nodes", "channel_ratio", "fxprune_s", "torch_pruning_s", "times_faster", "ms_per_node", *PASSES]
COLUMNS += ["proof_s", "torch_pruning_failure", "failure"]


def measure_speed(
    record: Record, library: str, model: str, ratio: float, rounds: int, limit_seconds: float, proof: bool
) -> None:
    """Time both libraries on one network, in turn, then the proof."""
    network = find_network(library, model)
    _warm_up_both()
    ours, theirs = Clock(limit_seconds), Clock(limit_seconds)
    channel_ratio = ratio
    passes: list[Mapping[str, float]] = []
    for _ in range(rounds):
        pruned = ours.run(lambda: fxprune.compile(network.model, network.sample, ratio, verify=False))
        if pruned is not None:
            channel_ratio = _removed_channels(pruned)
            passes.append(fxprune.report(pruned).seconds)
            record(nodes=len(pruned.graph.nodes), channel_ratio=channel_ratio, fxprune_s=ours.median)
        _time_torch_pruning(theirs, network, channel_ratio)
        record(failure=ours.failure, torch_pruning_s=theirs.median, torch_pruning_failure=theirs.failure)
    record(**{name: statistics.median(p[name] for p in passes) for name in PASSES if passes})
    if proof and not ours.failure:
        _time_proof(record, network, ratio, limit_seconds)


def _time_torch_pruning(clock: Clock, network: Network, channel_ratio: float) -> None:
    if not clock.failure:
        cut = copy.deepcopy(network.model)
        clock.run(lambda: torch_pruning_recipe.prune(cut, network.sample, channel_ratio))


def _time_proof(record: Record, network: Network, ratio: float, limit_seconds: float) -> None:
    clock = Clock(limit_seconds)
    proven = clock.run(lambda: fxprune.compile(network.model, network.sample, ratio))
    if proven is not None:
        record(proof_s=fxprune.report(proven).seconds["verify"])
    else:
        record(failure=f"with the proof: {clock.failure}")


def _removed_channels(pruned: fx.GraphModule) -> float:
    """The share of all channels of all groups that went."""
    groups = fxprune.report(pruned).groups
    return 1 - sum(g.after for g in groups) / sum(g.before for g in groups)


def _warm_up_both() -> None:
    """Run both libraries once on a tiny network, so that no measurement pays for imports and first calls."""
    tiny = warm_up()
    # Where torch-pruning is not installed, its column says so.
    Clock(60).run(lambda: torch_pruning_recipe.prune(tiny.model, tiny.sample, 0.2))


def speed_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    fields = dict(outcome.fields)
    ours, theirs = fields.get("fxprune_s"), fields.get("torch_pruning_s")
    if ours and theirs:
        fields["times_faster"] = theirs / ours
    if ours and fields.get("nodes"):
        fields["ms_per_node"] = 1000 * ours / fields["nodes"]
    return fields | {"failure": outcome.failure}
