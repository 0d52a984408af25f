"""What every public pass runs in: one at a time, with gradients possible, without autocast and garbage collection."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.capture import Captured
from fxprune.capture.checking import is_meta
from fxprune.capture.reachable import restored
from fxprune.capture.samples import Sample
from fxprune.errors import RecoveryError
from fxprune.options import Feed, setting
from fxprune.planning import Plan
from fxprune.proof import Pair, Proof, check_structure, prove
from fxprune.recovery import Recovery, Work, run_recoveries
from fxprune.rewriting import UNTRACED_TRAINING, Certificate, node_keep
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.util.progress import Steps

__all__ = [
    "one_pass",
    "pairs_of",
    "prove_plan",
    "recovered",
    "uncollected",
]


# The proof seeds the generators and switches kernels for the whole process, so one pass runs at a time.
_LOCK = threading.RLock()


@contextmanager
def one_pass(progress: bool | None, model: Any) -> Iterator[Steps]:
    """One pass over a model, which shows its steps if ``progress`` (None: only on a terminal).

    What the model's code shares with the rest of the process, caches among it, is afterwards what it was.
    """
    with ExitStack() as around:
        around.enter_context(_LOCK)
        # Tensors made in inference mode could not be trained, and autocast would round what is proven.
        around.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                around.enter_context(torch.autocast(device, enabled=False))
        if isinstance(model, nn.Module):
            around.enter_context(restored(model))
        steps = around.enter_context(Steps(progress))
        yield steps


@contextmanager
def uncollected() -> Iterator[None]:
    """Without automatic garbage collection: next to nothing of what a pass makes is garbage before it ends."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def prove_plan(
    graph: ChannelGraph,
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    masks: Mapping[Channels, Mask],
    sample: Sample,
    certificates: Sequence[Certificate],
) -> Proof:
    """Prove that ``pruned`` is ``model`` without what the plan removes, through each of its graphs.

    ``certificates``: what the rewrite says of its graphs.

    Raises:
        ProofError: a check failed.
    """
    check_structure(pairs_of(graph, masks, pruned, certificates))
    cut = {variable for variable, mask in masks.items() if not mask.all()}
    # The proof runs opaque modules as they are: they make the constants of their traced parts anew at every call.
    inside = {name for island in graph.captured.islands for c in island.everything() for name in c.constants}
    keep = {name: kept for name, kept in plan.keep.items() if name not in inside}

    untrained = next((op.reason for op in graph.opaque if op.op == UNTRACED_TRAINING), "")

    def proof(captured: Captured, given: Sample, *, alone: bool) -> Proof:
        return prove(
            model,
            captured.module(model),
            pruned,
            keep,
            (given.args, given.kwargs),
            crosses_norm=graph.crosses_norm(cut),
            seed=setting(plan, "seed", 0),
            node_keep=node_keep(graph, captured, masks),
            alone=alone,
            untrained=None if alone and captured.training_twin is None else untrained,
        )

    found = proof(graph.captured, sample, alone=False)
    for variant in graph.captured.variants:
        given = sample.resized_like(variant.sample) if variant.other is None else sample.others[variant.other]
        found = found.joined(proof(graph.captured.led_by(variant.variant), given, alone=True))
    return found


def pairs_of(
    graph: ChannelGraph, masks: Mapping[Channels, Mask], pruned: nn.Module, certificates: Iterable[Certificate]
) -> list[Pair]:
    """Each captured graph beside the graph of ``pruned`` that the rewrite says it wrote for it."""
    return [_pair(graph, masks, pruned, certificate) for certificate in certificates]


def _pair(graph: ChannelGraph, masks: Mapping[Channels, Mask], pruned: nn.Module, certificate: Certificate) -> Pair:
    captured = certificate.captured
    path = captured.prefix.removesuffix(".")
    words = [path, "training" if captured.training else "eval", str(captured.variant or "")]
    return Pair(
        " ".join(filter(None, words)),
        captured.graph,
        certificate.narrow,
        certificate.images,
        node_keep(graph, captured, masks),
        pruned.get_submodule(path),
        captured.prefix,
    )


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
