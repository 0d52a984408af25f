"""The ``forward`` of a generated ``model.py``: one statement a node, in the style of code written by hand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch.fx import Graph, Node

from fxprune.artefacts.source_layout import call
from fxprune.artefacts.source_names import VariableNames
from fxprune.artefacts.targets import function_name
from fxprune.artefacts.values import to_source

__all__ = ["forward_source"]

_INFIX: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
    operator.lshift: "<<",
    operator.rshift: ">>",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.is_: "is",
    operator.is_not: "is not",
}
_IN_PLACE: dict[Any, str] = {
    getattr(operator, f"i{name}"): f"{_INFIX[getattr(operator, plain)]}="
    for name, plain in [
        *((name, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")),
        *((name, f"{name}_") for name in ("and", "or")),
        *((name, name) for name in ("xor", "lshift", "rshift")),
    ]
}
_PREFIX: dict[Any, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~", operator.not_: "not "}
_SHORT_NAMES = {"torch.nn.functional.": "F.", "builtins.": ""}


def forward_source(graph: Graph, access: Callable[[str], str], indent: int = 4) -> str:
    """The ``forward`` method of a graph; ``access`` gives the expression for a module's or tensor's path."""
    printer = _Printer(graph, access, indent + 4)
    body = "\n".join(printer.lines())
    return f"{' ' * indent}def forward({', '.join(['self', *printer.parameters])}):\n{body}\n"


class _Printer:
    def __init__(self, graph: Graph, access: Callable[[str], str], indent: int) -> None:
        self._graph = graph
        self._access = access
        self._indent = indent
        self._names = VariableNames(graph)
        self.parameters: list[str] = []
        self._section = ""

    def lines(self) -> Iterator[str]:
        """The statements, with a comment wherever another part of the network begins."""
        margin = " " * self._indent
        for node in self._graph.nodes:
            if node.op == "placeholder":
                self.parameters.append(self._parameter(node))
                continue
            if node.op == "call_module" and (section := _section(str(node.target))) != self._section:
                self._section = section
                if section:
                    yield f"{margin}# {section}"
            if statement := self._statement(node):
                yield margin + statement

    def _parameter(self, node: Node) -> str:
        name = self._names.declare(node)
        stars = "*" * (len(str(node.target)) - len(str(node.target).lstrip("*")))
        return stars + name + (f"={self._value(node.args[0])}" if node.args else "")

    def _statement(self, node: Node) -> str:
        if node.op == "output":
            return f"return {self._value(node.args[0])}"
        if node.op == "get_attr":
            # Reading an attribute costs nothing, so the uses say it themselves.
            self._names.set(node, self._access(str(node.target)))
            return ""
        if node.target is operator.setitem:
            holder, index, value = node.args
            line = f"{self._value(holder)}[{self._index(index)}] = {self._value(value)}"
            self._names.declare(node)
            return line
        if node.op == "call_function" and node.target in _IN_PLACE:
            return self._in_place(node)
        expression = self._expression(node)
        return f"{self._names.declare(node)} = {expression}"

    def _in_place(self, node: Node) -> str:
        left, right = node.args
        symbol, value, source = _IN_PLACE[node.target], self._value(right), self._value(left)
        # On a number the update makes a new value, so the old one must keep its variable if it is used again.
        taken_over = isinstance(left, Node) and self._names.is_taken_over(left, node)
        name = self._names.declare(node, may_inherit=taken_over)
        update = f"{name} {symbol} {value}"
        return update if name == source else f"{name} = {source}; {update}"

    def _expression(self, node: Node) -> str:
        if node.op == "call_module":
            return self._call(f"{self._access(str(node.target))}(", node.args, node.kwargs)
        if node.op == "call_method":
            owner, *rest = node.args
            return self._call(f"{self._operand(owner)}.{node.target}(", rest, node.kwargs)
        return self._function(node)

    def _function(self, node: Node) -> str:
        target, args = node.target, node.args
        if target in _INFIX and len(args) == 2:
            return f"{self._operand(args[0])} {_INFIX[target]} {self._operand(args[1])}"
        if target in _PREFIX and len(args) == 1:
            return f"{_PREFIX[target]}{self._operand(args[0])}"
        if target is operator.getitem:
            return f"{self._operand(args[0])}[{self._index(args[1])}]"
        if target is getattr:
            return f"{self._operand(args[0])}.{args[1]}"
        name = function_name(target)
        for prefix, short in _SHORT_NAMES.items():
            if name.startswith(prefix):
                name = short + name.removeprefix(prefix)
        return self._call(f"{name}(", args, node.kwargs)

    def _call(self, head: str, args: Any, kwargs: dict[str, Any]) -> str:
        rendered = [self._value(argument) for argument in args]
        rendered += [f"{key}={self._value(value)}" for key, value in kwargs.items()]
        return call(head, rendered, self._indent, reserve=8)

    def _value(self, value: Any) -> str:
        return to_source(value, self._names.get)

    def _operand(self, value: Any) -> str:
        """A value as an operand or an owner: literals in parentheses, as ``-1 ** x`` and ``1.real`` would misread."""
        source = self._value(value)
        return source if isinstance(value, (Node, tuple, list, dict, str)) else f"({source})"

    def _index(self, index: Any) -> str:
        if isinstance(index, tuple) and index:
            return ", ".join(self._index_part(part) for part in index) + ("," if len(index) == 1 else "")
        return self._index_part(index)

    def _index_part(self, part: Any) -> str:
        if not isinstance(part, slice):
            return self._value(part)
        start, stop = (self._value(bound) if bound is not None else "" for bound in (part.start, part.stop))
        return f"{start}:{stop}" + (f":{self._value(part.step)}" if part.step is not None else "")


def _section(path: str) -> str:
    """The part of the network a layer belongs to: its path up to the first number, or its first two names."""
    parents = path.split(".")[:-1]
    for position, name in enumerate(parents):
        if name.isdigit():
            return ".".join(parents[: position + 1])
    return ".".join(parents[:2])
