"""The sum of a residual stream that a layer goes into, as its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from fxprune.recovery.walking import cone
from fxprune.rules.call import Call
from fxprune.statistics.following import addition_after, norm_after

if TYPE_CHECKING:
    from fxprune.recovery.layers import Layer

__all__ = ["sum_after"]


def sum_after(
    layer: Layer,
    calls: Mapping[fx.Node, Call],
    nodes: Mapping[str, fx.Node],
    layers: set[fx.Node],
    ranks: Mapping[fx.Node, int],
) -> Layer:
    """The layer with the sum that it goes into as its target, where the other summand is there when its turn comes.

    The other summand of the pruned network has gone wrong already; a layer that aims at the sum makes up for that. It
    has to be known when the layer is rewritten: made before, or by ops that no layer to be rewritten is among. A layer
    whose weight is read at several places stays as it is.

    Args:
        layer: the layer.
        calls: calls of the original graph.
        nodes: nodes of the pruned graph by name.
        layers: nodes of the pruned graph that are rewritten.
        ranks: the place of each node in the pruned graph.
    """
    if len(layer.readings) > 1:
        return layer
    reading = layer.first
    last = norm_after(reading.source, calls) if layer.norm is not None else reading.source
    found = None if last is None else addition_after(last, calls)
    other = nodes.get(found[1].name) if found is not None else None
    if found is None or other is None:
        return layer
    before = [node for node, rank in ranks.items() if rank < ranks[reading.node]]
    ahead = cone(other, before)
    if reading.node in ahead or ahead & layers:
        return layer
    return replace(layer, readings=(replace(reading, target=found[0], other=other),))
