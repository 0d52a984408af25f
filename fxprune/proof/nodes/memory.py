"""Which nodes share memory, and which read later what a node writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from fxprune.proof.nodes.evaluating import Result
from fxprune.proof.nodes.pairs import Pair, call_name, tensors_among

# Ops that return a view of every operand.
_VIEWS = frozenset(
    """getitem view transpose permute swapaxes movedim t unsqueeze squeeze unflatten select narrow split chunk unbind
    detach""".split()
)


class Memory:
    """Which nodes of a captured graph have values in shared memory, and which node reads each last."""

    def __init__(self, pair: Pair) -> None:
        self._last = pair.last_read
        self._families: dict[fx.Node, set[fx.Node]] = {}

    def note(self, node: fx.Node, shared: Iterable[fx.Node]) -> set[fx.Node]:
        """Record that a node's value lies in the memory of others; returns all nodes that share it."""
        members: set[fx.Node] = set()
        for given in shared:
            members |= self._families.get(given, {given})
        family = members | {node}
        for member in family:
            self._families[member] = family
        return members

    def rewritten(self, node: fx.Node, members: Collection[fx.Node], live: Collection[fx.Node]) -> set[fx.Node]:
        """The nodes whose values a write changes for later readers; ``live``: nodes whose values are still stored."""
        return {member for member in members if member in live and not self._dies_at(member, node)}

    def lineage(self, node: fx.Node) -> list[fx.Node]:
        """The chain of views from the node that made the memory to ``node``; empty if one of them may copy."""
        found = [node]
        while parents := [n for n in found[0].all_input_nodes if n in self._families.get(found[0], ())]:
            if call_name(found[0]) not in _VIEWS:
                return []
            found.insert(0, parents[0])
        return found

    def dying(self, node: fx.Node) -> Collection[fx.Node]:
        """The nodes that no later node reads after ``node``."""
        return self._last.get(node, ())

    def _dies_at(self, member: fx.Node, node: fx.Node) -> bool:
        return member.op != "get_attr" and member in self._last.get(node, ())


def sharing(result: Result) -> set[fx.Node]:
    """The operands whose memory a result shares."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors_among(result.full)}
    return {
        given
        for given, (full, _) in result.used.items()
        if any(tensor.untyped_storage()._cdata in storages for tensor in tensors_among(full))
    }


def written_by(node: fx.Node) -> fx.Node:
    """The operand to which an in-place node writes."""
    out = node.kwargs.get("out")
    return out if isinstance(out, fx.Node) else node.all_input_nodes[0]
