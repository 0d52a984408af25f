"""The ``forward`` of a generated ``model.py``: one statement a node, in the style of code written by hand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.fx import Graph, Node

from fxprune.capture.custom import CustomFunction
from fxprune.saving.graphs import CUSTOM_ROLE, is_namedtuple, output_class_path
from fxprune.saving.opaque import import_path
from fxprune.saving.source_names import VariableNames, call, quoted
from fxprune.saving.targets import function_name
from fxprune.saving.values import to_source

Access = Callable[[str], str]
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


_INDENT = 8


def forward_source(graphs: Mapping[str, Graph], access: Access, imported: Access, untraced: str = "") -> str:
    """The ``forward`` method; where there are several graphs, it calls the one of the present mode and of the sizes.

    ``access`` gives the expression for the path of a module or a tensor, ``imported`` the name for an import path.
    ``untraced``: why there is no graph of training mode, so that a call in it raises.
    """
    if set(graphs) == {"eval"} and not untraced:
        return _method("forward", graphs["eval"], access, imported)
    taken = [_parameters(graph, access, imported) for graph in graphs.values()]
    # Graphs for other arguments: which of them a call gives decides.
    parameters = taken[0] if all(one == taken[0] for one in taken) else ["*args", "**kwargs"]
    names = ", ".join(parameter.partition("=")[0] for parameter in parameters)
    sized = has_variants(graphs)
    lines = [f"forward = self.forward_for({names})"] if sized else [f"forward = {_choice(graphs, '')}"]
    if untraced:
        reason = ascii(f"the network is in training mode, of which there is no graph ({untraced}): call eval()")
        lines = ["if self.training:", f"    raise RuntimeError({reason})", *lines]
    body = "".join(f"        {line}\n" for line in [*lines, f"return forward({names})"])
    methods = [_method(f"forward_{name}", graph, access, imported) for name, graph in graphs.items()]
    head = f"    def forward({', '.join(['self', *parameters])}):\n{body}"
    return "\n".join([head, *[_forward_for(graphs)] * sized, *methods])


def _parameters(graph: Graph, access: Access, imported: Access) -> list[str]:
    printer = _Printer(graph, access, imported, _INDENT)
    list(printer.lines())
    return printer.parameters


def has_variants(graphs: Mapping[str, Graph]) -> bool:
    """Whether there are graphs for inputs of other sizes."""
    return "eval_1" in graphs


def _choice(graphs: Mapping[str, Graph], suffix: str) -> str:
    """The method of the present mode."""
    if f"training{suffix}" not in graphs:
        return f"self.forward_eval{suffix}"
    return f"self.forward_training{suffix} if self.training else self.forward_eval{suffix}"


def _forward_for(graphs: Mapping[str, Graph]) -> str:
    suffixes = [name.removeprefix("eval") for name in graphs if name.startswith("eval")]
    forwards = call("forwards = [", [_choice(graphs, suffix) for suffix in suffixes], 8, "]")
    return f'''    def forward_for(self, *args, **kwargs):
        """The forward that takes inputs of these sizes."""
        {forwards}
        return forwards[number_of_forward(self, [forward.__func__ for forward in forwards], args, kwargs)]
'''


def _method(name: str, graph: Graph, access: Access, imported: Access) -> str:
    printer = _Printer(graph, access, imported, _INDENT)
    body = "\n".join(printer.lines())
    return f"    def {name}({', '.join(['self', *printer.parameters])}):\n{body}\n"


class _Printer:
    def __init__(self, graph: Graph, access: Access, imported: Access, indent: int) -> None:
        self._graph = graph
        self._access = access
        self._imported = imported
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
                    yield f"{margin}# {quoted(section)[1:-1]}"
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
            self._names.release(node)
            return line
        if node.op == "call_function" and node.target in _IN_PLACE:
            return self._in_place(node)
        target = f"{self._names.declare(node)} = " if node.users else self._names.release(node)
        return target + self._expression(node, len(target))

    def _in_place(self, node: Node) -> str:
        left, right = node.args
        symbol, value, source = _IN_PLACE[node.target], self._value(right), self._value(left)
        # On a number the update makes a new value, so the old one must keep its variable if it is used again.
        taken_over = isinstance(left, Node) and self._names.is_taken_over(left, node)
        name = self._names.declare(node, may_inherit=taken_over)
        update = f"{name} {symbol} {value}"
        return update if name == source else f"{name} = {source}; {update}"

    def _expression(self, node: Node, reserve: int) -> str:
        if node.op == "call_module":
            return self._call(f"{self._access(str(node.target))}(", node.args, node.kwargs, reserve)
        if node.op == "call_method":
            owner, *rest = node.args
            return self._call(f"{self._owner(owner)}.{node.target}(", rest, node.kwargs, reserve)
        return self._function(node, reserve)

    def _function(self, node: Node, reserve: int) -> str:
        target, args = node.target, node.args
        if target in _INFIX and len(args) == 2:
            return f"{self._left(args[0])} {_INFIX[target]} {self._value(args[1])}"
        if target in _PREFIX and len(args) == 1:
            return f"{_PREFIX[target]}{self._owner(args[0])}"
        if target is operator.getitem:
            return f"{self._owner(args[0])}[{self._index(args[1])}]"
        if target is getattr:
            return f"{self._owner(args[0])}.{args[1]}"
        return self._call(f"{self._name_of(target)}(", args, node.kwargs, reserve)

    def _name_of(self, target: Any) -> str:
        if is_namedtuple(target):
            return str(target.__name__)
        if (path := output_class_path(target)) is not None:
            return self._imported(path)
        if isinstance(target, CustomFunction):
            return f"{self._imported(import_path(target.cls, CUSTOM_ROLE))}.apply"
        name = function_name(target)
        for prefix, short in _SHORT_NAMES.items():
            if name.startswith(prefix):
                return short + name.removeprefix(prefix)
        return name

    def _call(self, head: str, args: Any, kwargs: dict[str, Any], reserve: int) -> str:
        rendered = [self._value(argument) for argument in args]
        rendered += [f"{key}={self._value(value)}" for key, value in kwargs.items()]
        return call(head, rendered, self._indent, reserve=reserve)

    def _value(self, value: Any) -> str:
        return to_source(value, self._names.get)

    def _owner(self, value: Any) -> str:
        """A value before a dot: numbers in parentheses, as ``1.real`` would misread."""
        source = self._value(value)
        return source if isinstance(value, (Node, tuple, list, dict, str)) else f"({source})"

    def _left(self, value: Any) -> str:
        """A value before an operator: negative numbers in parentheses, as ``-1 ** x`` would misread."""
        source = self._value(value)
        return f"({source})" if source.startswith("-") or isinstance(value, complex) else source

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
