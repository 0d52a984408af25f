"""Decisions that a forward takes in Python on sizes: the trace follows one branch, the graph checks it.

``if height % 7:`` or ``range(length)`` is answered for the sample's sizes and leaves no op behind. Each answer becomes
a check in front of what it decided, so that an input of sizes with another answer is refused, never computed wrongly.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx

from fxprune.capture import sources
from fxprune.capture.lowering import holds_tensor
from fxprune.capture.numbers import INVERSES, OF_SIZES, Traced, plain, size_of
from fxprune.capture.samples import IMAGE_DIMS, kind_of
from fxprune.errors import CaptureError
from fxprune.rules.ops import SAME_SHAPE, canonical_name

REFUSAL = "this network was made for "
CALLS_WITH = f"{REFUSAL}calls with "
_OTHER_VALUES = f"{REFUSAL}inputs of other values"
# Layers and functions with a kernel of their own for inference, or one for each device.
_KERNELS = {"multi_head_attention_forward", "scaled_dot_product_attention", "MultiheadAttention", "LSTM", "GRU", "RNN"}
_SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SYMBOLS |= {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**"}

NewNode = Callable[[str, Any, tuple[Any, ...], dict[str, Any], Any], fx.Node]


def is_check(node: fx.Node) -> bool:
    """Whether a node checks a decision."""
    return node.op == "call_function" and node.target is torch._assert


def asks_sizes(graph: fx.Graph) -> bool:
    """Whether a graph checks sizes or arguments that may differ for another input, not only what kind they are of."""
    texts = [str(node.args[1]) for node in graph.nodes if is_check(node)]
    return any(REFUSAL in text and CALLS_WITH not in text for text in texts)


def asks_values(graph: fx.Graph) -> bool:
    """Whether a graph checks decisions that depended on the values of data, and so refuses other values."""
    return any(map(_asks_values, graph.nodes))


def _asks_values(node: fx.Node) -> bool:
    return is_check(node) and _OTHER_VALUES in str(node.args[1])


def are_complete(graphs: Sequence[fx.Graph]) -> bool:
    """Whether graphs of one forward, for inputs of the same sizes, leave out no answer to what it asks of values.

    Where two traces have had the same answers, they ask the same next. So each question that one of them asks must have
    the other answer in another one.
    """
    return _complete([[node for node in graph.nodes if _asks_values(node)] for graph in graphs])


def _complete(graphs: list[list[fx.Node]]) -> bool:
    """The same of the lists of checks that are left of each graph."""
    if not all(graphs):
        return not any(graphs)
    asked = graphs[0][0].args[0]
    same = [checks[1:] for checks in graphs if _answered(checks[0].args[0]) == _answered(asked)]
    other = [checks[1:] for checks in graphs if _answered(checks[0].args[0]) == _answered(asked, inverse=True)]
    return bool(other) and len(same) + len(other) == len(graphs) and _complete(same) and _complete(other)


def _answered(condition: Any, *, inverse: bool = False) -> tuple[str, str]:
    """A question with its answer, or with the other one. Equal forwards write equal names."""
    target = INVERSES.get(condition.target, condition.target) if inverse else condition.target
    return str(target), str(condition.args)


def asked_at(graph: fx.Graph) -> str:
    """The source line of the first decision in a graph."""
    found = (re.search(r"the way that (\S+) took", str(node.args[1])) for node in graph.nodes if is_check(node))
    return next((match[1] for match in found if match), "")


def refuses_sizes(error: BaseException) -> bool:
    """Whether an error came from such a check."""
    return isinstance(error, AssertionError) and REFUSAL in str(error)


def refuses_values(error: BaseException) -> bool:
    """Whether an error came from a check of the branch that values select."""
    return isinstance(error, AssertionError) and _OTHER_VALUES in str(error)


def refuse_other_sizes(graph: fx.Graph, dims: slice) -> None:
    """Add checks to a graph that these dims of its inputs have the sample's sizes."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(inputs[-1].next):
        for node in (n for n in inputs if isinstance(n.meta["val"], torch.Tensor)):
            for dim, known in list(enumerate(node.meta["val"].shape))[dims]:
                size = graph.call_method("size", (node, dim))
                same = graph.call_function(operator.eq, (size, known))
                needs = f"dim {dim} of {node.name} is {known} in the sample, and with others its forward does otherwise"
                check = graph.call_function(torch._assert, (same, f"{REFUSAL}inputs of other sizes: {needs}"))
                size.meta["val"], same.meta["val"], check.meta["val"] = known, True, None


def refuse_other_orders(graph: fx.Graph) -> None:
    """Add checks to a graph that the entries of dicts among its inputs are in the sample's order."""
    for name, node in _inputs(graph).items():
        if isinstance(value := node.meta["val"], dict) and len(value) > 1:
            names = graph.call_function(list, (node,))
            same = graph.call_function(operator.eq, (names, [*value]))
            text = f"{REFUSAL}{name} in the sample's order, {', '.join(map(str, value))}: its forward goes by it"
            check = graph.call_function(torch._assert, (same, text))
            names.meta["val"], same.meta["val"], check.meta["val"] = [*value], True, None


def refuse_one_tensor(graph: fx.Graph) -> None:
    """Add checks to a graph that no two of its inputs are one tensor."""
    tensors = {name: node for name, node in _inputs(graph).items() if isinstance(node.meta["val"], torch.Tensor)}
    for first, second in itertools.combinations(tensors, 2):
        if kind_of(tensors[first].meta["val"]) == kind_of(tensors[second].meta["val"]):
            two = graph.call_function(operator.is_not, (tensors[first], tensors[second]))
            text = f"{CALLS_WITH}two tensors as {first} and {second}, as its forward asks if they are one: clone it"
            check = graph.call_function(torch._assert, (two, text))
            two.meta["val"], check.meta["val"] = True, None


def _inputs(graph: fx.Graph) -> dict[str, fx.Node]:
    """The inputs and the entries of their containers, by path; what is inserted next comes behind these."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    graph.inserting_before(placeholders[-1].next)
    pending = [(node.name, node) for node in placeholders]
    for name, node in pending:
        value = node.meta["val"]
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, (list, tuple)) else ():
            if isinstance(value[key], (dict, list, tuple, torch.Tensor)):
                entry = graph.call_function(operator.getitem, (node, key))
                entry.meta["val"] = value[key]
                pending.append((f"{name}[{key!r}]", entry))
    return dict(pending)


def holds_at_batch(graph: fx.Graph, traced: int, wanted: int) -> bool:
    """Whether all decisions hold for another batch, which scales each first dim that is a multiple of it."""

    def value(given: Any) -> Any:
        if not isinstance(given, fx.Node):
            return given
        known = given.meta["val"]
        if holds_tensor(known):
            return True  # values do not tell
        if not _is_number(given):
            return known
        if given.target == "size":
            return known // traced * wanted if given.args[1] == 0 and known % traced == 0 else known
        if callable(given.target):
            return given.target(*map(value, given.args))
        return given.meta[OF_SIZES](given, value) if OF_SIZES in given.meta else known

    return all(value(node.args[0]) for node in graph.nodes if is_check(node))


def _is_number(node: fx.Node) -> bool:
    """Whether a node is computed from sizes, and neither from a dtype nor from a layout."""
    return (
        node.op != "placeholder"
        and node.target not in (getattr, "is_contiguous", len, list)
        and not holds_tensor(node.meta["val"])
    )


class Decisions:
    """Writes the checks into a graph, each once. ``new`` makes a node, ``size`` the node of a tensor's size."""

    def __init__(self, graph: fx.Graph, new: NewNode, size: Callable[[fx.Node, int], fx.Node]) -> None:
        self._graph, self._new, self._size = graph, new, size
        self._numbers: dict[tuple[Any, ...], fx.Node] = {}
        self._squeezed: dict[fx.Node, frozenset[fx.Node]] = {}
        self.place = ""  # a line that asked, once the forward is over
        self.asked: Callable[[fx.Node], None] = lambda check: None  # is told of each check

    def add(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> None:
        """Check that ``function(*operands)`` is true, unless it is true for all sizes."""
        args = tuple(map(self._operand, operands))
        nodes = [a for a in args if isinstance(a, fx.Node)]
        if not nodes or (len(args) == len(nodes) and len(set(nodes)) == 1):
            return
        if (function, args) not in self._numbers:
            condition = self._number(function, args, True)
            place = sources.source_line() or self.place or "the forward"
            needs = f"the way that {place} took for the sample needs {_described(function, operands)}"
            other = "values" if any(map(_depends_on_values, nodes)) else "sizes"
            told = condition, f"{REFUSAL}inputs of other {other}: {needs}"
            self.asked(self._new("call_function", torch._assert, told, {}, None))

    def add_literal(self, node: fx.Node, value: Any) -> None:
        """Check that a non-tensor argument equals the sample's: the forward branches on it."""
        if isinstance(value, (list, tuple, dict)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if not holds_tensor(item):
                    self.add_literal(self._new("call_function", operator.getitem, (node, key), {}, item), item)
        elif value is None or isinstance(value, (bool, int, float, str)):
            function = operator.is_ if value is None else operator.eq
            condition = self._new("call_function", function, (node, value), {}, True)
            text = f"{REFUSAL}{node.name} = {value!r}, as in the sample: compile it again for another value"
            self._new("call_function", torch._assert, (condition, text), {}, None)

    def add_given(self, node: fx.Node) -> None:
        """Check that an argument, or an entry of one, is not None if the sample's is not: that question is no op."""
        condition = self._new("call_function", operator.is_not, (node, None), {}, True)
        text = f"{CALLS_WITH}{node.name}, as in the sample: compile it again for calls without"
        self._new("call_function", torch._assert, (condition, text), {}, None)

    def add_lengths(self, node: fx.Node, value: Any) -> None:
        """Check that containers in an argument have as many entries as in the sample, and tensors where it has them."""
        if not isinstance(value, (list, tuple, dict)):
            return
        length = self._new("call_function", len, (node,), {}, len(value))
        condition = self._new("call_function", operator.eq, (length, len(value)), {}, True)
        text = f"{REFUSAL}{node.name} with {len(value)} entries, as in the sample: compile it again for another number"
        self._new("call_function", torch._assert, (condition, text), {}, None)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, (list, tuple, dict)):
                self.add_lengths(self._new("call_function", operator.getitem, (node, key), {}, item), item)
            elif isinstance(item, torch.Tensor):
                self.add_given(self._new("call_function", operator.getitem, (node, key), {}, item))

    def add_finite(self, node: fx.Node, answer: bool) -> None:
        """Check that values are finite; ``node`` asks for it, and its answer is then ``answer``."""
        value = torch.empty_like(node.meta["val"])
        given = node if answer else self._new("call_function", torch.logical_not, (node,), {}, value)
        text = f"{REFUSAL}finite values, and {sources.source_line()} met infinity or NaN"
        self._new("call_function", torch._assert, (given, text), {}, None)

    def add_sizes(self, sizes: Iterable[fx.Node]) -> None:
        """Check that sizes that a value read by the forward depends on are the sample's."""
        for node in sizes:
            tensor, dim = cast(Any, node.args)
            self.add(operator.eq, (size_of(tensor, dim, node.meta["val"]), node.meta["val"]))

    def add_shape(self, shape: Iterable[Any]) -> None:
        """Check that a tensor has the shape of the sample's."""
        for size in shape:
            self.add(operator.eq, (size, plain(size)))

    def add_rank(self, node: fx.Node) -> None:
        """Check what a tensor's number of dims depends on: the sizes that an earlier ``squeeze`` removed."""
        for squeeze in sorted(self._squeezes(node)):
            shape = cast(fx.Node, squeeze.args[0]).meta["val"].shape
            named = squeeze.kwargs.get("dim", range(len(shape)))
            dims = squeeze.args[1] if len(squeeze.args) > 1 else named
            for dim in [dims] if isinstance(dims, int) else cast(Any, dims):
                size = int(shape[dim])
                operands = (size_of(cast(fx.Node, squeeze.args[0]), dim % len(shape), size), 1)
                self.add(operator.eq if size == 1 else operator.ne, operands)

    def _squeezes(self, node: fx.Node) -> frozenset[fx.Node]:
        """The calls of ``squeeze`` that a tensor is computed from, each found once."""
        pending = [node]
        while pending:
            top = pending[-1]
            missing = [given for given in top.all_input_nodes if given not in self._squeezed]
            if missing and top not in self._squeezed:
                pending += missing
                continue
            is_call = top.op in ("call_function", "call_method")
            own = [top] if is_call and canonical_name(top.target) == "squeeze" else []
            before = (self._squeezed[given] for given in top.all_input_nodes)
            self._squeezed.setdefault(pending.pop(), frozenset(own).union(*before))
        return self._squeezed[node]

    def add_layout(self, node: fx.Node, kwargs: dict[str, Any], answer: bool) -> None:
        """Check that a tensor is contiguous, or not. Raises CaptureError: that depends on torch's choice of kernel."""
        if node.op == "get_attr" and node.meta["val"].dim() not in IMAGE_DIMS:
            return
        if kernel := self._kernel_before(node):
            message = (
                f"the forward asks for the memory format of what {kernel.name} gives, which is its kernel's choice"
            )
            raise CaptureError(f"{message}: call .contiguous() first")
        asked = self._new("call_method", "is_contiguous", (node,), kwargs, answer)
        condition = asked if answer else self._new("call_function", operator.not_, (asked,), {}, True)
        text = f"{REFUSAL}another memory format: {sources.source_line() or self.place} asks for that of {node.name}"
        self._new("call_function", torch._assert, (condition, text), {}, None)

    def _kernel_before(self, node: fx.Node) -> fx.Node | None:
        """A call before the node for which torch has several kernels, each with its own memory format."""
        pending, seen = [node], set[fx.Node]()
        while pending:
            top = pending.pop()
            name = top.meta.get("layer") or (canonical_name(top.target) if top.op != "placeholder" else "")
            if name in _KERNELS:
                return top
            if name not in ("contiguous", "size") and top not in seen:
                pending += top.all_input_nodes
            seen.add(top)
        return None

    def add_pieces(self, name: str, node: fx.Node, args: Any, kwargs: Any, count: int) -> None:
        """Check that a split gives ``count`` pieces again, since the forward may use all of them."""
        position = 1 if name == "unbind" else 2
        dim = kwargs.get("dim", args[position] if len(args) > position else 0) % node.meta["val"].dim()
        size = size_of(node, dim, int(node.meta["val"].shape[dim]))
        named = (kwargs[key] for key in ("split_size", "split_size_or_sections", "chunks") if key in kwargs)
        argument = args[1] if len(args) > 1 else next(named, None)
        if name == "unbind":
            self.add(operator.eq, (size, count))
        elif isinstance(argument, int):
            step = argument if name == "split" else -(-size // argument)
            self.add(operator.eq, (-(-size // step), count))

    def _operand(self, value: Any) -> Any:
        if not isinstance(value, Traced):
            return value
        if value.function is size_of:
            node, dim = value.operands
            varies = node.graph is self._graph and node.op != "get_attr" and not is_written_down(node, dim)
            return self._size(origin(node), dim) if varies else plain(value)
        args = tuple(map(self._operand, value.operands))
        return self._number(value.function, args, plain(value)) if _has_node(args) else plain(value)

    def _number(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> fx.Node:
        if (function, args) not in self._numbers:
            self._numbers[function, args] = self._new("call_function", function, args, {}, value)
        return self._numbers[function, args]


def _has_node(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, fx.Node) for a in args)


def origin(node: fx.Node) -> fx.Node:
    """The earliest tensor of the same shape, so that equal questions of several layers are recognised as equal."""
    while node.op in ("call_function", "call_method") and canonical_name(node.target) in SAME_SHAPE:
        given = node.args[0] if node.args else None
        if not isinstance(given, fx.Node) or not isinstance(given.meta.get("val"), torch.Tensor):
            break
        node = given
    return node


def is_written_down(node: fx.Node, dim: int) -> bool:
    """Whether the source says a size as a number, as in ``x.reshape(batch, tokens, 3, -1).permute(2, 0, 1, 3)``."""
    while node.op in ("call_function", "call_method"):
        name, numbers = canonical_name(node.target), cast(Any, node.args[1:])
        if name in ("nonzero", "argwhere"):
            return dim == 1
        numbers = numbers[0] if len(numbers) == 1 and isinstance(numbers[0], (list, tuple)) else numbers
        if name in ("reshape", "view"):
            return dim < len(numbers) and isinstance(numbers[dim], int) and numbers[dim] != -1
        if name != "permute" or len(numbers) <= dim or not isinstance(numbers[dim], int):
            return False
        node, dim = cast(fx.Node, node.args[0]), numbers[dim] % len(numbers)
    return False


def _depends_on_values(number: fx.Node) -> bool:
    """Whether a number is computed from a value read from a tensor, or is a size that depends on values."""
    if number.target == "size":
        with torch._C.DisableTorchFunction():  # these questions are not the forward's
            return _counts_entries(cast(fx.Node, number.args[0]), int(number.meta["val"]))
    is_read = number.target == "item" and OF_SIZES not in number.meta
    return is_read or any(map(_depends_on_values, number.all_input_nodes))


def _counts_entries(node: fx.Node, size: int) -> bool:
    """Whether a tensor, or one before it of as many rows, has as many of them as values say."""
    pending, seen = [node], {node}
    while pending:
        top = pending.pop()
        if "by_values" in top.meta:
            return True
        rows = ((given, given.meta.get("val")) for given in top.all_input_nodes if given not in seen)
        alike = [g for g, v in rows if not isinstance(v, torch.Tensor) or (v.dim() and v.shape[0] == size)]
        pending += alike
        seen.update(alike)
    return False


def _described(function: Callable[..., Any], operands: tuple[Any, ...]) -> str:
    """The condition in words, with the sample's sizes."""
    symbol = _SYMBOLS.get(function.__name__)
    words = [_in_words(o) for o in operands]
    return f" {symbol} ".join(words) if symbol and len(words) == 2 else f"{function.__name__}({', '.join(words)})"


def _in_words(value: Any) -> str:
    if not isinstance(value, Traced):
        return str(value)
    if value.written is not None and value.written.target == "item":
        return f"{value.written.args[0]} ({plain(value)} in the sample)"
    if value.function is size_of:
        node, dim = value.operands
        return f"dim {dim} of {node.name} ({plain(value)} in the sample)"
    return f"({_described(value.function, value.operands)})"
