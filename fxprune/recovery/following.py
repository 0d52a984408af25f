"""What comes after a layer: the batch norm that alone reads it, and the sum of a residual stream that it goes into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from fxprune.recovery.walking import cone
from fxprune.rules.call import Call

if TYPE_CHECKING:
    from fxprune.recovery.layers import Layer

__all__ = ["addition_after", "norm_after", "sum_after"]


def norm_after(node: fx.Node, calls: Mapping[fx.Node, Call]) -> fx.Node | None:
    """The batch norm that alone reads a node."""
    user = _only_user(node)
    call = calls.get(user) if user is not None else None
    return user if call is not None and call.name == "batch_norm" and call.arguments["input"] is node else None


def addition_after(node: fx.Node, calls: Mapping[fx.Node, Call]) -> tuple[fx.Node, fx.Node] | None:
    """The addition of two activations of one shape that alone reads a node, and its other summand."""
    user = _only_user(node)
    call = calls.get(user) if user is not None else None
    if user is None or call is None or call.name != "add" or call.arguments.get("alpha", 1) != 1:
        return None
    summands = [call.arguments["input"], call.arguments["other"]]
    others = [s for s in summands if isinstance(s, fx.Node) and s is not node]
    if len(others) != 1 or call.shape_of(others[0]) != call.shape_of(node):
        return None
    return user, others[0]


def sum_after(
    layer: Layer,
    calls: Mapping[fx.Node, Call],
    nodes: Mapping[str, fx.Node],
    layers: set[fx.Node],
    ranks: Mapping[fx.Node, int],
) -> Layer:
    """The layer with the sum that it goes into as its target, where the other summand is there when its turn comes.

    The other summand of the pruned network has gone wrong already; a layer that aims at the sum makes up for that. It
    has to be known when the layer is rewritten: made before, or by ops that no layer to be rewritten is among.

    Args:
        layer: the layer.
        calls: calls of the original graph.
        nodes: nodes of the pruned graph by name.
        layers: nodes of the pruned graph that are rewritten.
        ranks: the place of each node in the pruned graph.
    """
    last = norm_after(layer.source, calls) if layer.norm is not None else layer.source
    found = None if last is None else addition_after(last, calls)
    other = nodes.get(found[1].name) if found is not None else None
    if found is None or other is None:
        return layer
    before = [node for node, rank in ranks.items() if rank < ranks[layer.node]]
    ahead = cone(other, before)
    if layer.node in ahead or ahead & layers:
        return layer
    return replace(layer, target=found[0], other=other)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
