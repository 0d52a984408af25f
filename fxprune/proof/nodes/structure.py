"""Compares two graphs op for op: the rewritten one must be the captured one with other sizes and nothing else.

Values alone are not enough: a ReLU6 is a ReLU on small values, and a dropout does nothing in eval mode. So ops, modules
and all literals except integers must be the same. Integers are sizes, which are checked by their effect on values. The
rewritten graph may also select entries and compute sizes, which by itself changes nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.errors import ProofError
from fxprune.proof.nodes.pairs import Pair, call_name, described, fault, is_number, is_only_read, is_sizes

# A rewrite may add only selections of entries ("picks") and arithmetic on sizes.
_ARITHMETIC = frozenset((operator.add, operator.sub, operator.mul, operator.floordiv))
_SPLITS = frozenset(
    """split split_with_sizes chunk unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split hsplit vsplit
    dsplit""".split()
)
# Ops that select entries by index; a rewrite may replace them by picks, and a gate by nothing.
_GATE = "select_channels"
_PICKS = frozenset(("getitem", "index_select", _GATE))
# Ops whose arguments after the first are judged by the values that they select.
_JUDGED_BY_VALUES = _SPLITS | _PICKS
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the captured graph, and the rewritten graph's nodes that compute it."""

    full: fx.Node  # the node
    written: tuple[fx.Node, ...]  # the rewritten graph's nodes since the previous step, in order
    counterpart: fx.Node | None  # the one of them with the same op; None if picks, a literal or nothing replace it
    image: Any  # the node or number that has its value


def check_structure(pairs: Iterable[Pair]) -> dict[Pair, list[Step]]:
    """The steps that match every rewritten graph with its captured one, op for op. Raises ProofError: they differ."""
    found = {}
    for pair in pairs:
        graphs = getattr(pair.root, "graphs", {}).values()
        if not any(graph is pair.narrow for graph in graphs):
            raise ProofError(f"{pair.label} graph: the pruned network runs another graph than the rewritten one")
        found[pair] = matched(pair)
    return found


def matched(pair: Pair) -> list[Step]:
    """The steps of both graphs, in order. Raises ProofError: a node is missing, added, out of order or different."""
    walk = _Walk(pair)
    steps = [walk.step(node) for node in pair.full.nodes]
    walk.end()
    arguments = _Arguments(pair, {node for step in steps for node in step.written if node is not step.counterpart})
    for step in steps:
        arguments.compare(step)
    return steps


class _Walk:
    """Goes through the rewritten graph's nodes and matches them with the captured nodes that they stand for."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._rest = iter(pair.narrow.nodes)
        self._passed: set[fx.Node] = set()
        # The rewritten graph's nodes that return numbers; all others may return tensors.
        self._numbers: set[fx.Node] = set()

    def step(self, node: fx.Node) -> Step:
        """The step of the captured graph's next node."""
        image = self._pair.images.get(node)
        if not isinstance(image, fx.Node):
            self._check_left_out(node, image)
            return Step(node, (), None, image)
        written = () if image in self._passed else tuple(self._up_to(image))
        if image not in self._passed and (not written or written[-1] is not image):
            raise fault(self._pair, node, "it is missing or out of order in the rewritten graph")
        self._passed.update(written)
        counterpart = self._counterpart(node, written)
        if counterpart and (is_number(node) or is_sizes(node)):
            self._numbers.update((counterpart, image))
        for extra in written:
            if extra is not counterpart and not self._is_harmless(extra, node):
                raise fault(self._pair, node, f"the rewritten graph adds {described(extra)}")
        return Step(node, written, counterpart, image)

    def end(self) -> None:
        """Check that no node is left over."""
        if left := next(self._rest, None):
            raise fault(self._pair, left, "the captured graph has no such node")

    def _up_to(self, image: fx.Node) -> Iterator[fx.Node]:
        for node in self._rest:
            yield node
            if node is image:
                return

    def _check_left_out(self, node: fx.Node, literal: Any) -> None:
        """Only numbers may become literals; only checks that hold, their numbers, and gates may be left out."""
        images = self._pair.images
        if literal is not None:
            if not is_number(node) or type(literal) is not type(node.meta["val"]) or literal != node.meta["val"]:
                raise fault(self._pair, node, f"it became {literal!r}")
            return
        kind = call_name(node)
        if kind == "_assert":
            condition = images.get(node.all_input_nodes[0]) if node.all_input_nodes else node.args[0]
            allowed = condition is None or condition is True
        elif node.op == "get_attr":
            allowed = all(call_name(user) == _GATE for user in node.users)
        else:
            allowed = is_number(node) and all(images.get(user) is None for user in node.users)
        if not allowed:
            raise fault(self._pair, node, "it is missing in the rewritten graph")

    def _counterpart(self, node: fx.Node, written: tuple[fx.Node, ...]) -> fx.Node | None:
        """The written node that does the same: the last one, or the one before the picks of its result."""
        kind = call_name(node)
        for other in reversed(written):
            if (kind in _SPLITS and other.target is torch.split) or self._does_the_same(node, other):
                return other
            sized = is_number(node) and other.target in _ARITHMETIC
            if other.target is not torch.index_select and other.op != "get_attr" and not sized:
                break
        else:
            if kind in _PICKS if written else kind == _GATE:
                return None
        raise fault(self._pair, node, f"it became {described(written[-1]) if written else self._pair.images[node]}")

    def _does_the_same(self, node: fx.Node, other: fx.Node) -> bool:
        if node.op not in ("get_attr", "call_module"):
            return other.op == node.op and bool(other.target == node.target)
        return other.op == node.op and self._pair.prefix + self._pair.named(other)[0] == node.target

    def _is_harmless(self, node: fx.Node, step: fx.Node) -> bool:
        """Whether an added node only picks entries or computes sizes."""
        if node.op == "get_attr":
            value = self._pair.named(node)[1]
            return isinstance(value, torch.Tensor) and value.dtype == torch.int64
        if node.op == "call_method" and node.target == "type_as":  # a write through a slice converts the type anyway
            return call_name(step) == "setitem" and node.args[1] is self._pair.images.get(step.all_input_nodes[0])
        if node.op == "call_method" and node.target == "contiguous":  # it gives a tensor even strides
            return call_name(step) == "view_as_complex" and len(node.args) == 1 and is_only_read(self._pair, node)
        if node.op != "call_function" or node.kwargs:
            return False
        if node.target in _ARITHMETIC:
            self._numbers.add(node)
            return all(given in self._numbers for given in node.all_input_nodes)
        if node.target is operator.getitem and node.args[0] in self._numbers:
            self._numbers.add(node)
            return True
        # A write's target may be picked as a view; all other picks use an index list of the rewrite.
        return node.target is torch.index_select or (node.target is operator.getitem and call_name(step) == "setitem")


class _Arguments:
    """Compares the arguments of counterparts; ``added``: the rewritten graph's nodes that are no counterpart."""

    def __init__(self, pair: Pair, added: set[fx.Node]) -> None:
        self._pair = pair
        self._added = added
        self._images = {image for image in pair.images.values() if isinstance(image, fx.Node)}

    def compare(self, step: Step) -> None:
        node, other = step.full, step.counterpart
        if other is None:
            if isinstance(step.image, fx.Node):
                source = step.image.all_input_nodes[0] if step.written else step.image
                self._check(step, self._operand(node.args[0], source))
            return
        kind = call_name(node)
        if kind == "getitem" and not _is_tensor(node.args[0]) and node.args[1] != other.args[1]:
            raise fault(self._pair, node, f"item {node.args[1]!r} became {other.args[1]!r}")
        if kind in _JUDGED_BY_VALUES:
            pairs: Iterable[tuple[Any, Any]] = [(node.args[:1], other.args[:1])]
        elif kind == "setitem":
            pairs = [(node.args[::2], other.args[::2])]
        else:
            pairs = [(node.args, other.args), (dict(node.kwargs), self._without_added(kind, node, other))]
        for full, narrow in pairs:
            self._check(step, self._difference(full, narrow))

    def _check(self, step: Step, difference: str) -> None:
        if difference:
            raise fault(self._pair, step.full, difference)

    def _without_added(self, kind: str, node: fx.Node, other: fx.Node) -> dict[str, Any]:
        """The keyword arguments without sizes that the rewrite added, and without an added scale of attention."""
        kwargs = dict(other.kwargs)
        for name in other.kwargs.keys() - node.kwargs.keys():
            if _is_int(kwargs[name]) or (kind == _ATTENTION and name == "scale"):
                del kwargs[name]
        return kwargs

    def _difference(self, full: Any, narrow: Any) -> str:
        """How the arguments differ, or ""."""
        if isinstance(full, fx.Node):
            return self._operand(full, narrow)
        if isinstance(narrow, fx.Node):
            return "" if _is_int(full) else f"{full!r} became {narrow.name}"
        if isinstance(full, slice) and isinstance(narrow, slice):
            full, narrow = (full.start, full.stop, full.step), (narrow.start, narrow.stop, narrow.step)
        if isinstance(full, Mapping) and isinstance(narrow, Mapping) and full.keys() == narrow.keys():
            return self._first((full[key], narrow[key]) for key in full)
        if _is_int(full) and isinstance(narrow, (list, tuple)):
            narrow = narrow[0] if len(narrow) == 1 else narrow
        if isinstance(full, (list, tuple)) and isinstance(narrow, (list, tuple)) and len(full) == len(narrow):
            return self._first(zip(full, narrow, strict=True))
        if isinstance(full, (list, tuple)) and isinstance(narrow, (list, tuple)):
            return f"{len(full)} arguments or items became {len(narrow)}: {narrow}"
        return "" if _same_literal(full, narrow) else f"{full!r} became {narrow!r}"

    def _first(self, pairs: Iterable[tuple[Any, Any]]) -> str:
        return next((text for text in (self._difference(a, b) for a, b in pairs) if text), "")

    def _operand(self, full: Any, narrow: Any) -> str:
        """How an operand differs from the node's image, which may be picked from; sizes may be integers; or ""."""
        if isinstance(narrow, fx.Node):
            same = self._origin(narrow) is self._pair.images.get(full)
        elif is_number(full) and not isinstance(full.meta["val"], int):
            same = type(narrow) is float and narrow == self._pair.images.get(full)
        else:
            same = is_sizes(full) and all(_is_int(n) or isinstance(n, fx.Node) for n in _items(narrow))
        return "" if same else f"it reads {narrow} instead of {full.name}"

    def _origin(self, node: fx.Node) -> fx.Node:
        """The counterpart or image from which an added node picks or computes."""
        while node in self._added and node not in self._images and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node


def _is_tensor(given: Any) -> bool:
    return isinstance(given, fx.Node) and isinstance(given.meta.get("val"), torch.Tensor)


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _same_literal(full: Any, narrow: Any) -> bool:
    """Whether two literals are the same; integers may differ, because their effect on values is checked."""
    if _is_int(full) and _is_int(narrow):
        return True
    if type(full) is not type(narrow):
        return False
    return bool(full == narrow) or (isinstance(full, float) and math.isnan(full) and math.isnan(narrow))
