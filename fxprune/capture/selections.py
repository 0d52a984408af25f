"""Selections that may be empty: ``rows = (choice == i).nonzero()``, and code that is skipped where there are none.

The trace goes on as if every selection held some entries, so that its graph has the code of each of them. Whether code
is skipped where nothing is selected leaves no difference if what it computes has no entries, and is only written to
where nothing is selected. To see this, the forward is traced again with selections that are empty, and compared.
"""

from __future__ import annotations

import hashlib
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
from fxprune.capture.moments import memory, needs_entries, needs_none, selected_by, with_entries
from fxprune.errors import CaptureError
from fxprune.rules.ops import canonical_name, draws, is_pure, writes_in_place
from fxprune.util.paths import attribute

if TYPE_CHECKING:
    from fxprune.capture.capturing import Task
    from fxprune.capture.recorder import Recorder

# More selections than this are too many to try each set of them.
_MOST = 6
# Writes of entries at the places in the first tensor among these arguments.
_WRITES = {"setitem": 1, "index_put": 1}
_WRITES |= dict.fromkeys(("index_copy", "index_add", "index_fill", "scatter", "scatter_add"), 2)


def idle_checks(task: Task, recorder: Recorder, writes: set[Any]) -> list[fx.Node]:
    """The checks of a task's graph that selections are not empty, none of which makes a difference.

    ``writes``: what the forward writes outside of tensors. Raises CaptureError: one makes a difference, in one of the
    traces in which some of them are empty.
    """
    checks = {node: number for node in recorder.graph.nodes if (number := needs_entries(node)) is not None}
    numbers, tried = sorted({*checks.values(), *recorder.selections.stepped}), set[frozenset[int]]()
    model = meta_clone(task.model) if numbers else task.model
    while (empty := next((those for those in _sets(numbers) if those not in tried), None)) is not None:
        tried.add(empty)
        other, _, state, _, written = replace(task, answers=[], empty=empty).settled()
        if len(numbers) > _MOST and not recorder.selections.moments.are_as_in(other.selections.moments):
            raise CaptureError("what is skipped where nothing is selected may depend on several selections together")
        with torch.random.fork_rng(devices=[]):
            values = _values(recorder.graph, empty, model, task.prefix)
        known = _matters(recorder.graph, values, recorder.constants)
        asked = _asked(recorder.graph, values, recorder.constants)
        if any(_reduces(node, values) for node in values):
            raise CaptureError("code that is skipped where nothing is selected reduces what is selected to one number")
        values = {node: node.meta.get("val") for node in other.graph.nodes}
        told = _matters(other.graph, values, other.constants)
        asks = _asked(other.graph, values, other.constants)
        asks_more = not (other.modes_read <= recorder.modes_read and asks <= asked)
        if known != told or asks_more or not {*state.changed(), *written} <= writes:
            raise CaptureError("code that is skipped where nothing is selected makes a difference there")
        # Of some it may ask only where others are empty.
        found = (ask(node) for node in other.graph.nodes for ask in (needs_entries, needs_none))
        numbers = sorted({*numbers, *other.selections.stepped, *(number for number in found if number is not None)})
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


def _asked(graph: fx.Graph, values: Mapping[fx.Node, Any], constants: Mapping[str, torch.Tensor]) -> set[str]:
    """What a graph checks, each condition written out, without writes of nothing, and checks of empty selections."""
    written: dict[fx.Node, str] = {}
    for node in graph.nodes:
        args = fx.node.map_arg((node.args, dict(node.kwargs)), written.__getitem__)
        unwritten = node.op in ("call_function", "call_method") and _writes_nothing(node, values)
        target = _target(node, constants)
        written[node] = written[node.args[0]] if unwritten else _short(f"{node.op} {target} {args}")
    checks = (node for node in graph.nodes if is_check(node) and needs_entries(node) is needs_none(node) is None)
    return {written[check.args[0]] for check in checks}


def _values(graph: fx.Graph, empty: frozenset[int], model: nn.Module, prefix: str) -> dict[fx.Node, Any]:
    """The meta value of each node where some selections are empty. Raises CaptureError: an op refuses that."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        known = node.meta.get("val")
        if "selects" in node.meta and "by_values" in node.meta:
            none = node.meta["selects"] in empty or _is_empty(values[selected_by(node)])  # type: ignore[index]
            values[node] = with_entries(known, 0) if none else known
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
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: places[same.get(n, n)])
        does = node.op, _target(node, constants), str(args), str(kwargs)
        is_number = is_pure(node) and node.target != "item" and not holds_tensor(node.meta["val"])
        if is_number or node.op == "get_attr":
            places[node] = _short(str(does))  # a size, that of another layer or this one, or a weight is read anywhere
            continue
        places[node] = f"%{len(found)}"
        found.append(does)
    return found


def _target(node: fx.Node, constants: Mapping[str, torch.Tensor]) -> Any:
    """What a node calls or reads: a constant by its values, since its name says how many were made before."""
    return constants[str(node.target)].tolist() if str(node.target) in constants else str(node.target)


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
    held = {memory(node) for node in made.graph.nodes if node.op in ("placeholder", "get_attr")}
    memories, later = {memory(made), memory(of)}, False
    for node in made.graph.nodes:
        into = node.args[0] if later and node.args and writes_in_place(node) else None
        writes = isinstance(into, fx.Node) and memory(into) in memories and not _writes_nothing(node, values)
        # A layer or function may write in place, and then gives its input back.
        gives_back = later and not writes_in_place(node) and memory(node) in memories
        if writes or (gives_back and node.meta["val"].shape == made.meta["val"].shape):
            return False
        later = later or node is made
    return held.isdisjoint(memories)
