"""Every rule after every other: which ops of the corpus give what, which read it, and a network for each pair.

Ops that share both halves of their rule are one rule here: ``relu`` and ``gelu`` meet others in the same code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.analysis.solving import ChannelGraph
from fxprune.api import analyze
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, Product
from fxprune.rules.registry import find_rule, rule_names
from tests.rules.cases import Case, Layout
from tests.rules.chains import LAYOUTS, chained, fit_to_read, links
from tests.rules.prepared import built

MOST_TRIES = 400


@dataclass(frozen=True, eq=False)
class Link:
    """An op of the corpus between two layers.

    Attributes:
        layout: of the layer before it.
        case: the network it comes from.
        readers: the rules that read what the layer before makes.
        givers: the rules whose result the layer behind reads, where not all of its widths are pinned.
        result: what the op makes of the layout's sample.
    """

    layout: Layout
    case: Case
    readers: frozenset[str]
    givers: frozenset[str]
    result: Tensor


@cache
def same_rule() -> dict[str, str]:
    """For each name of the rules table the first name with the same two halves."""
    first: dict[Any, str] = {}
    rules = {name: find_rule(name) for name in rule_names()}
    return {name: first.setdefault((rule.axes, rule.repair), name) for name, rule in rules.items() if rule is not None}


@cache
def all_links() -> tuple[Link, ...]:
    """Every op of the corpus that can stand between two layers."""
    made = (_link(layout, case) for layout in LAYOUTS for case in links(layout))
    return tuple(link for link in made if link is not None)


def _link(layout: Layout, case: Case) -> Link | None:
    network = chained(layout, (case,), (False,))
    if network is None:
        return None
    net, sample = network
    graph = analyze(net, sample)
    nodes = {node.target: node for node in graph.calls if node.op == "call_module"}
    reads = (node for node in nodes["first"].users if node in graph.calls)
    gives = (node for node in nodes["last.0"].all_input_nodes if node in graph.calls and _shrinks(graph, node))
    with torch.no_grad():
        result = net.middle(net.first(*sample))
    return Link(layout, case, _rules(graph, reads), _rules(graph, gives), result)


def _rules(graph: ChannelGraph, nodes: Iterator[fx.Node]) -> frozenset[str]:
    return frozenset(same_rule()[graph.calls[node].name] for node in nodes if node.target not in ("first", "last.0"))


def _shrinks(graph: ChannelGraph, node: fx.Node) -> bool:
    axes = pytree.tree_leaves(graph.axes[node], is_leaf=lambda a: isinstance(a, (Channels, Product, Concat, Gather)))
    resolved: list[Axis] = [graph.solver.resolve(axis) for axis in axes if axis is not None]
    return any(not isinstance(axis, Fixed) for axis in resolved)


@cache
def _by_rule(side: str) -> dict[str, list[Link]]:
    found: dict[str, list[Link]] = defaultdict(list)
    for link in all_links():
        for rule in getattr(link, side):
            found[rule].append(link)
    return dict(found)


def givers() -> tuple[str, ...]:
    """The rules that can stand first of two, by name: their result reaches a layer with a width that may shrink."""
    return tuple(sorted(_by_rule("givers")))


def readers() -> tuple[str, ...]:
    """The rules that can stand second of two, by name."""
    return tuple(sorted(_by_rule("readers")))


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Every ordered pair of rules of which the first gives and the second reads."""
    return tuple((first, second) for second in readers() for first in givers())


@cache
def fitting(first: str, second: str) -> tuple[Layout, tuple[Case, Case]] | None:
    """Two ops, one behind the other, in which ``second`` reads what ``first`` gives; None where no two ops fit.

    Ops of one layout are tried first, then any others: an op serves wherever torch accepts it.
    """
    tries = [(a, b) for a in _by_rule("givers")[first] for b in _by_rule("readers")[second]]
    tries.sort(key=lambda pair: pair[0].layout is not pair[1].layout)
    for a, b in tries[:MOST_TRIES]:
        if _accepts(b, a.result):
            for layout in dict.fromkeys((a.layout, b.layout)):
                if chained(layout, (a.case, b.case), (False, False)) is not None:
                    return layout, (a.case, b.case)
    return None


@cache
def _operator(link: Link) -> Any:
    return built(link.case).middle


def _accepts(link: Link, h: Tensor) -> bool:
    try:
        with torch.no_grad():
            return fit_to_read(_operator(link)(h.clone()))
    except Exception:  # an op may raise anything on what was not made for it
        return False


def missing() -> dict[str, list[str]]:
    """Rules that no pair holds as the first, or as the second, and what the corpus says of them."""
    rules = set(same_rule().values())
    return {
        "give no width that may shrink to a layer": sorted(rules - set(givers())),
        "read no layer's result": sorted(rules - set(readers())),
    }
