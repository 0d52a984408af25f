"""The proof of a plan: hands the rewriter's certificates to the proof, which takes none of them for granted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Channels
from fxprune.capture import Captured
from fxprune.capture.checking import refuses
from fxprune.capture.decisions import asks_values
from fxprune.capture.samples import Sample
from fxprune.capture.tracing import UNTRACED_TRAINING
from fxprune.planning import Plan
from fxprune.planning.plan import setting
from fxprune.proof import Pair, Proof, UnjudgedError, check_structure, prove, prove_nodes
from fxprune.rewriting.rewriter import Certificate, node_keep
from fxprune.util.modes import has_own_modes
from fxprune.util.paths import attribute


def prove_plan(
    graph: ChannelGraph,
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    masks: Mapping[Channels, Mask],
    sample: Sample,
    certificates: Sequence[Certificate],
    level: bool | str = True,
) -> Proof:
    """Prove that ``pruned`` is ``model`` without what the plan removes, through each of its graphs.

    ``certificates``: the rewriter's statements about its graphs. ``level``: True for a proof node by node, or "full"
    for one of whole networks, also used if a node cannot be judged alone. Raises ProofError: a check failed.
    """
    pairs = pairs_of(graph, masks, pruned, certificates)
    steps = check_structure(pairs)
    note, seed, untrained = "", setting(plan, "seed", 0), _untrained(graph)
    if any(not kept_mask(axis, masks).all() for axis in graph.numbered):
        note, level = "proven as a whole, because the elements that are left have other numbers", "full"
    if level is True:
        try:
            found = prove_nodes(model, pruned, pairs, plan.keep, seed=seed, untrained=untrained, steps=steps)
            _check_samples(graph, pruned, sample)
            return found
        except UnjudgedError as error:
            note = f"proven as a whole, because node by node it cannot be judged: {error}"
    proof = prove_whole(graph, model, pruned, plan, masks, sample)
    return replace(proof, notes=(*proof.notes, note)) if note else proof


def _check_samples(graph: ChannelGraph, pruned: nn.Module, sample: Sample) -> None:
    """Check that the result runs on the user's sample, and on each where values select the graph.

    Removal may lead values to a branch of none, and tensors to strides that an op does not take. Raises UnjudgedError:
    a sample is refused, and whole networks decide.
    """
    for given in (sample, *(sample.others if asks_values(graph.captured.graph) else ())):
        if reason := refuses(pruned, given.with_values()):
            raise UnjudgedError(reason)


def prove_whole(
    graph: ChannelGraph, model: nn.Module, pruned: nn.Module, plan: Plan, masks: Mapping[Channels, Mask], sample: Sample
) -> Proof:
    """Compare whole networks in float64, at the sample's sizes and others. Raises ProofError: a check failed."""
    cut = {variable for variable, mask in masks.items() if not mask.all()}
    # The proof runs opaque modules as they are, so they recompute the constants of their traced parts at every call.
    inside = {name for island in graph.captured.islands for c in island.everything() for name in c.constants}
    keep = {name: kept for name, kept in plan.keep.items() if name not in inside}
    whole = bool(graph.captured.opaque) or any(map(has_own_modes, model.modules()))  # then no graph alone can train

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
            untrained=None if alone and captured.training_graph is None else _untrained(graph),
            trained=None if whole else (captured.training_graph or captured).module(model),
        )

    found = proof(graph.captured, sample, alone=False)
    for specialization in graph.captured.specializations:
        given = specialization.sample  # if values decide, only its own sample takes this branch
        if specialization.other is not None:
            given = sample.others[specialization.other]
        elif specialization.answers is None:
            given = sample.resized_like(specialization.sample)
        found = found.joined(proof(graph.captured.led_by(specialization.specialization), given, alone=True))
    return found


def _untrained(graph: ChannelGraph) -> str:
    """Why training mode cannot be traced, and runs the graph of eval mode; empty where it can."""
    return next((op.reason for op in graph.opaque if op.op == UNTRACED_TRAINING), "")


def pairs_of(
    graph: ChannelGraph, masks: Mapping[Channels, Mask], pruned: nn.Module, certificates: Iterable[Certificate]
) -> list[Pair]:
    """Each captured graph, paired with the graph that the rewriter's certificate names for it."""
    return [_pair(graph, masks, pruned, certificate) for certificate in certificates]


def _pair(graph: ChannelGraph, masks: Mapping[Channels, Mask], pruned: nn.Module, certificate: Certificate) -> Pair:
    captured = certificate.captured
    path = captured.prefix.removesuffix(".")
    words = [path, "training" if captured.training else "eval", str(captured.specialization or "")]
    return Pair(
        " ".join(filter(None, words)),
        captured.graph,
        certificate.narrow,
        certificate.images,
        node_keep(graph, captured, masks),
        attribute(pruned, path),
        captured.sample,
        captured.constants,
        captured.prefix,
        captured.training,
        captured.training_graph is None,
    )
