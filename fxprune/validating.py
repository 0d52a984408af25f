"""The proof of a plan: of the graph for inputs like the sample, and of every variant for images of other sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from fxprune.analysis import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.capture import Captured
from fxprune.options import setting
from fxprune.planning import Plan
from fxprune.rewriting import UNTRACED_TRAINING, Certificate, node_keep
from fxprune.samples import Sample
from fxprune.verifying import Pair, Proof, check_structure, prove

__all__ = ["pairs_of", "prove_plan"]


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
