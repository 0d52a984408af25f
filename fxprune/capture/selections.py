"""Selections that may be empty: ``rows = (choice == i).nonzero()``, and code that is skipped where there are none.

The trace goes on as if every selection held some entries, so that its graph has the code of each of them. Whether code
is skipped where nothing is selected leaves no difference if what it computes has no entries, and is only written to
where nothing is selected. To see this, the forward is traced again with selections that are empty, and compared.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.capture.clone import meta_clone, meta_like
from fxprune.capture.decisions import is_check
from fxprune.capture.lowering import holds_tensor, leaves, map_leaves
from fxprune.capture.masked import are_one
from fxprune.capture.moments import Moments
from fxprune.errors import CaptureError
from fxprune.rules.ops import canonical_name, draws, is_pure, writes_in_place
from fxprune.util.paths import attribute

if TYPE_CHECKING:
    from fxprune.capture.capturing import Task
    from fxprune.capture.recorder import Recorder

# More selections than this are too many to try each set of them.
_MOST = 6
_PLACES = {"nonzero", "argwhere", "where"}
# Comparisons of a count with zero, and those of them that say that there is nothing.
_EMPTY = {"eq", "le"}
_COMPARED = {"gt", "ne", *_EMPTY}
# Ops that keep the number of elements.
_PASSING = {"squeeze", "flatten", "view", "reshape", "clone", "contiguous", "long", "int", "to"}
# Writes of entries at the places in the first tensor among these arguments.
_WRITES = {"setitem": 1, "index_put": 1}
_WRITES |= dict.fromkeys(("index_copy", "index_add", "index_fill", "scatter", "scatter_add"), 2)


Conditions = tuple[tuple[Any, int], ...]


class Selections:
    """The masks that a trace selects by, and how many entries each is taken to select.

    ``empty``: the numbers of those that select nothing, while all others select some; None: as the sample says.
    """

    def __init__(self, empty: frozenset[int] | None) -> None:
        self._masks: list[tuple[fx.Node, fx.Node]] = []
        self._empty = empty
        self.moments = Moments()

    def asked(self, check: fx.Node) -> None:
        """A check was written: if it asks whether a selection is empty, note what the code sees there."""
        if self._empty is not None and not _needs_entries(check) is _needs_none(check) is None:
            self.moments.asked()

    def sized(self, node: fx.Node, value: Any) -> Any:
        """The meta result of an op that selects by a mask, with the number of entries that it is taken to have."""
        mask = _mask(node)
        if self._empty is None or mask is None:
            return value
        node.meta["selects"] = number = self._number(mask)
        return _with_entries(value, 0 if number in self._empty else None)

    def answer(self, node: fx.Node, value: Any) -> Any:
        """What is read from ``mask.any()``, ``mask.sum()`` or ``mask.sum() == 0``; ``value`` if it is none of these."""
        compared = canonical_name(node.target) in _COMPARED and node.args[1:] == (0,) and not node.kwargs
        of_all, names = (
            (node.args[0], ("sum", "count_nonzero")) if compared else (node, ("any", "sum", "count_nonzero"))
        )
        whole = isinstance(of_all, fx.Node) and len((*of_all.args, *of_all.kwargs)) == 1
        mask = of_all.args[0] if whole and canonical_name(of_all.target) in names else None  # type: ignore[union-attr]
        if self._empty is None or not isinstance(mask, fx.Node) or mask.meta["val"].dtype != torch.bool:
            return value
        node.meta["selects"] = number = self._number(mask)
        node.meta["told_empty"] = canonical_name(node.target) in _EMPTY
        if not isinstance(value, bool):
            return 0 if number in self._empty else max(value, 2)
        return (number in self._empty) is node.meta["told_empty"]

    def _number(self, mask: fx.Node) -> int:
        """The number of a mask, which one that computes the same shares if nothing was written in between."""
        last = next(iter(reversed(mask.graph.nodes)))
        for number, (known, since) in enumerate(self._masks):
            if (known is mask and not _is_written(mask, since)) or (known is not mask and are_one(known, mask)):
                return number
        self._masks.append((mask, last))
        return len(self._masks) - 1


def _is_written(mask: fx.Node, since: fx.Node) -> bool:
    """Whether an op wrote into the memory of a mask after another node of the graph."""
    node = since.next
    with torch._C.DisableTorchFunction():
        while node.op != "root":
            into = node.args[0] if node.args and writes_in_place(node) else None
            if isinstance(into, fx.Node) and _memory(into) == _memory(mask):
                return True
            node = node.next
    return False


def _mask(node: fx.Node) -> fx.Node | None:
    """What an op selects by, if the first dim of each result is the number of entries."""
    name = canonical_name(node.target)
    if name in _PLACES:
        places = node.args[0] if len(node.args) == 1 else None
        return places if isinstance(places, fx.Node) else None
    index = node.args[1] if name in ("getitem", "masked_select") else None
    if isinstance(index, tuple) and all(part is None or isinstance(part, (int, slice)) for part in index[1:]):
        index = index[0] if index else None
    is_mask = isinstance(index, fx.Node) and index.meta["val"].dtype == torch.bool
    return index if is_mask else None  # type: ignore[return-value]


def _with_entries(value: Any, entries: int | None) -> Any:
    def sized(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return leaf
        return leaf.new_empty((max(len(leaf), 2) if entries is None else entries, *leaf.shape[1:]))

    return map_leaves(sized, value)


def idle_checks(task: Task, recorder: Recorder, writes: set[Any]) -> list[fx.Node]:
    """The checks of a task's graph that selections are not empty, none of which makes a difference.

    ``writes``: what the forward writes outside of tensors. Raises CaptureError: one makes a difference, in one of the
    traces in which some of them are empty.
    """
    checks = {node: number for node in recorder.graph.nodes if (number := _needs_entries(node)) is not None}
    numbers, tried = sorted(set(checks.values())), set[frozenset[int]]()
    model = meta_clone(task.model) if numbers else task.model
    while (empty := next((those for those in _sets(numbers) if those not in tried), None)) is not None:
        tried.add(empty)
        other, _, state, _, written = replace(task, answers=[], empty=empty).settled()
        if len(numbers) > _MOST and not recorder.selections.moments.are_as_in(other.selections.moments):
            raise CaptureError("what is skipped where nothing is selected may depend on several selections together")
        with torch.random.fork_rng(devices=[]):
            values = _values(recorder.graph, empty, model, task.prefix)
        known = _matters(recorder.graph, values, recorder.constants)
        if any(_reduces(node, values) for node in values):
            raise CaptureError("code that is skipped where nothing is selected reduces what is selected to one number")
        values = {node: node.meta.get("val") for node in other.graph.nodes}
        told = _matters(other.graph, values, other.constants)
        asks = other.modes_read <= recorder.modes_read and _asked(other.graph) <= _asked(recorder.graph)
        if known != told or not asks or not {*state.changed(), *written} <= writes:
            raise CaptureError("code that is skipped where nothing is selected makes a difference there")
        # Of some it may ask only where others are empty.
        found = (ask(node) for node in other.graph.nodes for ask in (_needs_entries, _needs_none))
        numbers = sorted({*numbers, *(number for number in found if number is not None)})
    return list(checks)


def _short(text: str) -> str:
    return text if len(text) < 99 else hashlib.sha256(text.encode()).hexdigest()


def _sets(numbers: list[int]) -> Iterator[frozenset[int]]:
    """Sets of selections that may be empty together: each, since the forward may count them, or do otherwise for one.

    Where there are many, code must not do so. Then it is all of them, and sets of which some holds one of any two
    selections without the other.
    """
    if len(numbers) <= _MOST:
        for size in range(len(numbers), 0, -1):
            yield from map(frozenset, combinations(numbers, size))
        return
    yield frozenset(numbers)
    for bit in range((len(numbers) - 1).bit_length()):
        for side in (0, 1):
            yield frozenset(number for place, number in enumerate(numbers) if place >> bit & 1 == side)


def _asked(graph: fx.Graph) -> set[str]:
    """What a graph checks, each condition written out, without those on whether selections are empty."""
    written: dict[fx.Node, str] = {}
    for node in graph.nodes:
        args = fx.node.map_arg((node.args, dict(node.kwargs)), written.__getitem__)
        written[node] = _short(f"{node.op} {node.target} {args}")
    checks = (node for node in graph.nodes if is_check(node) and _needs_entries(node) is _needs_none(node) is None)
    return {written[check.args[0]] for check in checks}


_ENTRIES = ((operator.ne, 0), (operator.gt, 0), (operator.ge, 1))
_NONE = ((operator.eq, 0), (operator.le, 0), (operator.lt, 1))


def _needs_entries(check: fx.Node) -> int | None:
    """The number of the selection of which a node checks just that it is not empty."""
    return _selected(check, _ENTRIES, _NONE)


def _needs_none(check: fx.Node) -> int | None:
    """The number of the selection of which a node checks just that it is empty."""
    return _selected(check, _NONE, _ENTRIES)


def _selected(check: fx.Node, conditions: Conditions, where_told: Conditions) -> int | None:
    """The selection that a check counts; ``where_told``: what it must ask of an answer that there is nothing."""
    condition = check.args[0] if is_check(check) else None
    if not isinstance(condition, fx.Node) or len(condition.args) != 2:
        return None
    asked, least = condition.args
    while isinstance(asked, fx.Node) and asked.target in (operator.mul, operator.pos):
        factors = [a for a in asked.args if not (isinstance(a, int) and a > 0)]
        asked = factors[0] if len(factors) == 1 else None
    if not isinstance(asked, fx.Node) or (asked.target, *asked.args[1:]) not in (("size", 0), ("item",)):
        return None
    selected: Any = asked.args[0]
    while isinstance(selected, fx.Node) and "selects" not in selected.meta:
        passes = canonical_name(selected.target) in _PASSING and selected.meta["val"].dim() == 1
        given: Any = selected.args[0] if selected.args else None
        of_tuple = selected.target is operator.getitem and not isinstance(given.meta["val"], torch.Tensor)
        selected = given if passes or of_tuple else None
    if not isinstance(selected, fx.Node):
        return None
    fits = (condition.target, least) in (where_told if selected.meta.get("told_empty") else conditions)
    return selected.meta["selects"] if fits else None


def _values(graph: fx.Graph, empty: frozenset[int], model: nn.Module, prefix: str) -> dict[fx.Node, Any]:
    """The meta value of each node where some selections are empty. Raises CaptureError: an op refuses that."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        known = node.meta.get("val")
        if "selects" in node.meta and "by_values" in node.meta:
            none = node.meta["selects"] in empty or _is_empty(values[_mask(node)])  # type: ignore[index]
            values[node] = _with_entries(known, 0) if none else known
        elif node.op in ("placeholder", "get_attr", "output") or is_check(node) or node.target == "item":
            values[node] = known
        else:
            try:
                values[node] = _run(node, values, model, prefix)
            except Exception as error:  # any op of the forward
                raise CaptureError(f"{node.name} does not take a selection that is empty") from error
    return values


def _run(node: fx.Node, values: Mapping[fx.Node, Any], model: nn.Module, prefix: str) -> Any:
    given = [values[n] for n in node.all_input_nodes]
    unchanged = all(_alike(value, n.meta.get("val")) for value, n in zip(given, node.all_input_nodes, strict=True))
    if "by_values" in node.meta or (unchanged and not any(map(_is_empty, given))):
        return node.meta["val"]
    made: list[torch.Tensor] = []
    args, kwargs = map_leaves(
        partial(_zeros, made), fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    )
    if node.op == "call_module":
        layer = attribute(model, str(node.target).removeprefix(prefix))
        state = {name: _zeros(made, tensor) for name, tensor in (*layer.named_parameters(), *layer.named_buffers())}
        value = torch.func.functional_call(layer, state, args, kwargs)
    else:
        function: Any = node.target if node.op == "call_function" else getattr(type(args[0]), str(node.target))
        value = function(*args, **kwargs)
    _check_gradients(value, made)
    return map_leaves(lambda leaf: meta_like(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)


def _zeros(made: list[torch.Tensor], value: Any) -> Any:
    """Zeros with memory in place of a tensor of the meta device, since kernels may refuse what is empty."""
    if not isinstance(value, torch.Tensor):
        return value
    zeros = torch.zeros(value.shape, dtype=value.dtype, requires_grad=value.is_floating_point() or value.is_complex())
    made.append(zeros)
    return zeros.clone()


def _check_gradients(value: Any, made: list[torch.Tensor]) -> None:
    """Check that what has no entries has a backward pass, and that it gives zeros. Raises CaptureError: it does not."""
    results = [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if not results or not _is_empty(value):
        return
    gradients = torch.autograd.grad([r.sum() for r in results], [m for m in made if m.requires_grad], allow_unused=True)
    if any(gradient is not None and gradient.count_nonzero() for gradient in gradients):
        raise CaptureError("what has no entries has a gradient")


def _alike(value: Any, known: Any) -> bool:
    """Whether a value has the shapes that were traced."""
    if isinstance(value, torch.Tensor):
        return isinstance(known, torch.Tensor) and value.shape == known.shape
    pairs = zip(leaves(value), leaves(known), strict=True)
    return all(a.shape == b.shape if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _is_empty(value: Any) -> bool:
    tensors = [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]
    return bool(tensors) and not any(tensor.numel() for tensor in tensors)


def _matters(
    graph: fx.Graph, values: Mapping[fx.Node, Any], constants: Mapping[str, torch.Tensor]
) -> list[tuple[Any, ...]]:
    """What a graph computes apart from what has no entries, and from writes of nothing: equal lists are one program."""
    same: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and _writes_nothing(node, values):
            same[node] = same.get(node.args[0], node.args[0])
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        acts = node.op.startswith("call_") and not is_pure(node) and not is_check(node) and node not in same
        acts = acts and (not _is_empty(values[node]) or _counts(node))
        if acts or node.op in ("placeholder", "output") or node in read:
            read.update([node, *(same.get(given, given) for given in node.all_input_nodes)])
    read -= same.keys()
    places: dict[fx.Node, str] = {}
    found: list[tuple[Any, ...]] = []
    for node in (node for node in graph.nodes if node in read):
        target = constants[str(node.target)].tolist() if str(node.target) in constants else str(node.target)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: places[same.get(n, n)])
        does = node.op, target, str(args), str(kwargs)
        if is_pure(node) and node.target != "item" and not holds_tensor(node.meta["val"]):
            places[node] = _short(str(does))  # a size, that of another layer or this one, is read anywhere
            continue
        places[node] = f"%{len(found)}"
        found.append(does)
    return found


def _counts(node: fx.Node) -> bool:
    """Whether an op does something where there are no entries: it draws numbers, or counts a step of training.

    A graph of eval mode may serve both modes. Dropout of nothing draws nothing, nor does that of an attention.
    """
    names = str(node.meta.get("layer", "")), canonical_name(node.target)
    if any(kind in name for name in names for kind in ("BatchNorm", "InstanceNorm", "batch_norm", "instance_norm")):
        return True
    return node.op != "call_module" and draws(node) and not any(part in names[1] for part in ("dropout", "attention"))


def _reduces(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether an op makes numbers of no entries, such as their mean: these may be NaN, and so may be gradients."""
    value = values[node]
    is_number = isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
    writes = writes_in_place(node) or _writes_nothing(node, values)
    return is_number and not writes and any(_is_empty(values[given]) for given in node.all_input_nodes)


def _writes_nothing(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether an op writes into a tensor without entries, or writes at no place of its first argument, or a copy."""
    in_place = writes_in_place(node)
    if not node.args or not isinstance(node.args[0], fx.Node) or "out" in node.kwargs:
        return False
    if in_place and _is_empty(values[node.args[0]]):
        return True
    place = _WRITES.get(canonical_name(node.target).removesuffix("_"))
    index = node.args[place] if place is not None and len(node.args) > place else None
    parts = index if isinstance(index, (tuple, list)) else (index,)
    nothing = any(isinstance(part, fx.Node) and _is_empty(values[part]) for part in parts)
    return nothing and (in_place or _is_alone(node, node.args[0], values))


def _is_alone(made: fx.Node, of: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a copy is as good as the tensor itself: the forward made that, and nothing writes into either later."""
    held = {_memory(node) for node in made.graph.nodes if node.op in ("placeholder", "get_attr")}
    memories, later = {_memory(made), _memory(of)}, False
    for node in made.graph.nodes:
        into = node.args[0] if later and node.args and writes_in_place(node) else None
        writes = isinstance(into, fx.Node) and _memory(into) in memories and not _writes_nothing(node, values)
        # A layer or function may write in place, and then gives its input back.
        gives_back = later and not writes_in_place(node) and _memory(node) in memories
        if writes or (gives_back and node.meta["val"].shape == made.meta["val"].shape):
            return False
        later = later or node is made
    return held.isdisjoint(memories)


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
