"""Checks of decisions that always turn out as they did: those on widths alone need not be written."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from fxprune.analysis import ChannelGraph
from fxprune.axes.expressions import Axis, Channels, Fixed, Gather, Product
from fxprune.capture.decisions import is_check

__all__ = ["idle_nodes"]

# The dtype of a tensor, and its layout.
_SETTINGS = (getattr, "is_contiguous")


def idle_nodes(source: ChannelGraph, graph: fx.Graph) -> set[fx.Node]:
    """The checks in a captured graph that no input can fail, and the numbers that nothing else reads."""
    idle: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if is_check(node):
            if _always_holds(source, graph, node):
                idle.add(node)
        elif node.users and isinstance(node.meta.get("val"), (int, float)) and all(u in idle for u in node.users):
            idle.add(node)
    return idle


def _always_holds(source: ChannelGraph, graph: fx.Graph, check: fx.Node) -> bool:
    (condition,) = check.all_input_nodes
    if condition.op == "placeholder" or isinstance(condition.meta["val"], torch.Tensor):
        return False
    if all(not _varies(source, size) for size in _sizes(check)):
        return True
    sides = [a for a in condition.args if isinstance(a, fx.Node)]
    return condition.target is operator.eq and len(sides) == 2 and all(_is_batch(source, graph, s) for s in sides)


def _sizes(node: fx.Node) -> Iterator[fx.Node]:
    """The sizes, settings, and numbers among the inputs, that a number is computed from."""
    for given in node.all_input_nodes:
        if given.op == "placeholder" or given.target in ("size", *_SETTINGS):
            yield given
        else:
            yield from _sizes(given)


def _varies(source: ChannelGraph, size: fx.Node) -> bool:
    """Whether a size may be another one with another input: unless parameters alone make the dim."""
    if size.op == "placeholder" or size.target in _SETTINGS:
        return True
    tensor, dim = size.args
    return not _is_made_of_weights(source, source.axes[tensor][dim])  # type: ignore[index]


def _is_made_of_weights(source: ChannelGraph, axis: Axis) -> bool:
    # The axis as its op gave it: a weight's axis that the solver found to be fixed still has the weight's size.
    if isinstance(axis, Channels):
        return axis.origin.tensor in source.shapes
    if isinstance(axis, Fixed):
        return False
    if isinstance(axis, Gather):
        return _is_made_of_weights(source, axis.base)
    parts = axis.factors if isinstance(axis, Product) else axis.parts
    return all(_is_made_of_weights(source, part) for part in parts)


def _is_batch(source: ChannelGraph, graph: fx.Graph, size: fx.Node) -> bool:
    """Whether a number is the size of an input's first dim as all ops since have handed it on."""
    if size.target != "size" or size.args[1] != 0:
        return False
    first = next(n for n in graph.nodes if n.op == "placeholder")
    axes = source.axes[size.args[0]]  # type: ignore[index]
    given = source.axes[first]
    return isinstance(given, tuple) and len(given) > 0 and axes[0] is given[0]
