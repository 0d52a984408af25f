"""Values that do not depend on data: tensors made from sizes, literals, constants and buffers, for control flow.

Inputs are data, whatever their type, and so is everything computed from them. Parameters change in training, and a
tensor that the forward writes to changes from call to call. None of these is ever evaluated.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Container
from typing import Any

import torch
from torch import fx

from fxprune.capture.decisions import Decisions
from fxprune.capture.guards import answer_if_finite
from fxprune.capture.live import DataReads
from fxprune.capture.numbers import OF_SIZES, traced
from fxprune.errors import CaptureError
from fxprune.rules.ops import canonical_name, is_written, writes_in_place

_CHANGES = frozenset(
    "bernoulli empty empty_like normal rand rand_like randint randint_like randn randn_like randperm".split()
)
Stored = Callable[[str], torch.Tensor | None]
Size = Callable[[fx.Node], Any]
_CPU = torch.device("cpu")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
# Above so many elements, values are not computed again.
_LARGE = 100_000


class _UnknownError(Exception):
    """The value depends on data, random numbers or an in-place write."""


def known_value(node: fx.Node, stored: Stored) -> torch.Tensor | None:
    """The value of a node's tensor on the CPU, or None if it depends on data; ``stored`` gives constants."""
    try:
        value = _Evaluator(stored).value(node)
    except _UnknownError:
        return None
    return value if isinstance(value, torch.Tensor) else None


def deciding_sizes(node: fx.Node, stored: Stored) -> list[fx.Node]:
    """The sizes that a known value depends on, found by trying a dozen other sizes; equal sizes change together."""
    sizes = _sizes_behind(node)
    evaluator = _Evaluator(stored)
    value = evaluator.value(node)
    if evaluator.largest > _LARGE:
        return sizes
    kinds = {int(size.meta["val"]) for size in sizes}
    hanging = {n for n in kinds if any(_differs(node, stored, {n: other}, value) for other in _others(n))}
    return [size for size in sizes if size.meta["val"] in hanging]


def buffers_behind(node: fx.Node) -> set[str]:
    """The names of the stored tensors from whose values a node is computed."""
    found, pending, seen = set(), [node], {node}
    while pending:
        top = pending.pop()
        if top.target == "size" or isinstance(top.meta["val"], (torch.device, torch.dtype)):
            continue
        found |= {str(top.target)} if top.op == "get_attr" else set()
        pending.extend(n for n in top.all_input_nodes if n not in seen)
        seen.update(top.all_input_nodes)
    return found


def check_unwritten(read: Collection[str], graph: fx.Graph, training: bool) -> None:
    """Raise CaptureError if a graph writes, in a mode, to a buffer whose value the forward reads in Python."""
    layers = {str(node.target) for node in graph.nodes if node.op == "call_module" and training}
    stored = [node for node in graph.nodes if node.op == "get_attr" and node.target in read]
    norms = [node for node in stored if training and any(map(_keeps_statistics, node.users))]
    written = [str(node.target) for node in stored if node in norms or is_written(node)]
    for name in (*written, *(name for name in read if name.rpartition(".")[0] in layers)):
        raise CaptureError(
            f"the forward decides by the value of {name}, to which it writes: a later call may go another way than "
            "this one; if only the first call writes to it, make that call before"
        )


def _keeps_statistics(node: fx.Node) -> bool:
    return node.op == "call_function" and canonical_name(node.target) in ("batch_norm", "instance_norm")


def _sizes_behind(node: fx.Node) -> list[fx.Node]:
    found, pending, seen = [], [node], {node}
    while pending:
        top = pending.pop()
        if top.target == "size":
            found.append(top)
            continue
        pending.extend(n for n in top.all_input_nodes if n not in seen)
        seen.update(top.all_input_nodes)
    return found


def _others(size: int) -> set[int]:
    return {1, 2, 3, 4, 5, 7, 8, size - 1, size + 1, size + 7, 2 * size, 2 * size + 1, 4 * size + 3} - {0, size}


def _differs(node: fx.Node, stored: Stored, sizes: dict[int, int], value: torch.Tensor) -> bool:
    try:
        other = _Evaluator(stored, lambda size: sizes.get(size.meta["val"], size.meta["val"]))
        return not torch.equal(other.value(node), value)
    except Exception:  # whatever an op raises at sizes that do not fit
        return True


class _Evaluator:
    """Evaluates what a node needs, each node once; ``size`` gives sizes, if not the sample's."""

    def __init__(self, stored: Stored, size: Size | None = None) -> None:
        self.largest = 0
        self._stored, self._size = stored, size
        self._known: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node) -> Any:
        if node not in self._known:
            value = self._known[node] = self._evaluated(node)
            self.largest = max(self.largest, value.numel() if isinstance(value, torch.Tensor) else 0)
        return self._known[node]

    def _evaluated(self, node: fx.Node) -> Any:
        given = node.meta["val"]
        if node.target == "size":
            return given if self._size is None else self._size(node)
        if isinstance(given, torch.dtype) or (isinstance(given, (int, float)) and self._size is None):
            return given
        if isinstance(given, torch.device):
            return _CPU
        if writes_in_place(node) or is_written(node):
            raise _UnknownError
        if node.op == "get_attr":
            stored = self._stored(str(node.target))
            if stored is None:
                raise _UnknownError
            return stored.cpu()
        if node.op not in ("call_function", "call_method") or canonical_name(node.target) in _CHANGES:
            raise _UnknownError
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self.value)
        kwargs = {name: _CPU if isinstance(v, torch.device) else v for name, v in kwargs.items()}
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class KnownValues:
    """Answers for the recorder, which notes what each of them depends on."""

    def __init__(
        self,
        new: Callable[..., fx.Node],
        node_of: Callable[[torch.Tensor], fx.Node],
        stored: Stored,
        constants: Container[str],
        decisions: Decisions,
    ) -> None:
        self._new, self._node_of, self._stored = new, node_of, stored
        self._constants, self._decisions = constants, decisions
        self.buffers: set[str] = set()  # whose values were read

    def read(self, name: str, func: Any, args: Any, kwargs: Any, by_values: DataReads | None) -> Any:
        """The result of a call that reads a tensor's values. Raises CaptureError: it depends on data."""
        if (number := self._number(name, args[0])) is not None:
            return number
        try:
            return func(self.answer(name, args[0]), *args[1:], **kwargs)
        except CaptureError:
            if by_values is None:
                raise
            return by_values.read(name, args[0])

    def _number(self, name: str, tensor: Any) -> Any:
        """A number, or a truth value, of a tensor on which sizes of the input decide; None for others."""
        if name not in ("item", "__bool__") or not isinstance(tensor, torch.Tensor) or tensor.numel() != 1:
            return None
        known = known_value(node := self._node_of(tensor), self._stored)
        if known is None or not deciding_sizes(node, self._stored):
            return None
        value = known.item()
        written = self._new("call_method", "item", (node,), {}, value)
        written.meta[OF_SIZES] = self._number_at
        number = traced(int(value) if isinstance(value, bool) else value, operator.pos, (written,))
        number.written = written
        if name == "item" and not isinstance(value, bool):
            return number
        self._decisions.add(operator.ne if value else operator.eq, (number, 0))
        return bool(value)

    def _number_at(self, written: fx.Node, size: Size) -> Any:
        """What such a node, or a copy of it in another graph, gives where ``size`` gives the sizes."""
        return _Evaluator(self._stored, size).value(written)

    def lengths(self, given: Any, by_values: DataReads | None) -> Any:
        """Lengths that a call is given, with numbers in place of tensors."""
        if not isinstance(given, (list, tuple)) or not any(isinstance(item, torch.Tensor) for item in given):
            return given
        read = functools.partial(self.read, "item", torch.Tensor.item, kwargs={}, by_values=by_values)
        return [read(args=(item,)) if isinstance(item, torch.Tensor) else item for item in given]

    def answer(self, name: str, tensor: Any) -> torch.Tensor:
        """The values of a tensor, or its truth value. Raises CaptureError: they depend on data."""
        node = self._node_of(tensor) if isinstance(tensor, torch.Tensor) else None
        known = None if node is None else known_value(node, self._stored)
        if node is not None and known is not None:
            self._decisions.add_sizes(deciding_sizes(node, self._stored))
            self.buffers |= buffers_behind(node)
            return known
        answer = answer_if_finite(node) if node is not None and name == "__bool__" else None
        if node is None or answer is None:
            raise CaptureError(f"the forward reads tensor values: {name}() cannot be answered without data")
        self._decisions.add_finite(node, answer)
        return torch.tensor(answer)

    def as_numbers(self, index: Any, *, masks: bool) -> Any:
        """An index with numbers in place of the masks and tensors in it, as far as no data enters them, and no buffer
        the tensors, because another value may be loaded into that."""
        items = index if isinstance(index, tuple) else (index,)
        found = tuple(self._as_number(item, masks) for item in items)
        changed = any(new is not old for new, old in zip(found, items, strict=True))
        return index if not changed else found if isinstance(index, tuple) else found[0]

    def _as_number(self, item: Any, masks: bool) -> Any:
        if isinstance(item, slice):
            ends = (item.start, item.stop, item.step)
            held = any(isinstance(end, torch.Tensor) for end in ends)
            return slice(*(self._as_number(end, False) for end in ends)) if held else item
        is_mask = masks and isinstance(item, torch.Tensor) and item.dtype == torch.bool and item.dim() == 1
        is_number = isinstance(item, torch.Tensor) and item.dtype in _INTEGERS and item.dim() == 0
        if not (is_mask or is_number) or known_value(self._node_of(item), self._stored) is None:
            return item
        if is_number and any(name not in self._constants for name in buffers_behind(self._node_of(item))):
            return item
        known = self.answer("__getitem__", item)
        return known.nonzero().flatten() if is_mask else int(known)
