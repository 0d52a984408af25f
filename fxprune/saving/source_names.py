"""How generated source is laid out."""

from __future__ import annotations

import builtins
import itertools
import keyword
import operator
import re

from torch import nn
from torch.fx import Graph, Node

from fxprune.saving.targets import CALLABLE_BUILTINS

_WIDTH = 120
_TAKEN = frozenset(vars(nn.Module()))
PART = '''
def part(module: nn.Module, name: str) -> nn.Module | torch.Tensor:
    """What a module holds under a name that cannot be written as an attribute."""
    tables = (module._modules, module._parameters, module._buffers)
    return next(table[name] for table in tables if name in table)
'''


def call(head: str, arguments: list[str], indent: int, tail: str = ")", reserve: int = 0) -> str:
    """``head`` + arguments + ``tail`` on one line if it fits, else one argument a line.

    ``indent`` is that of the statement, ``reserve`` what stands before ``head`` on its line.
    """
    line = head + ", ".join(arguments) + tail
    if "\n" not in line and indent + reserve + len(line) <= _WIDTH:
        return line
    inner = " " * (indent + 4)
    return head + "\n" + "".join(f"{inner}{argument},\n" for argument in arguments) + " " * indent + tail


def is_plain_name(text: str) -> bool:
    """Whether the text can stand in source as the name of a part: a word that means nothing else to a module.

    Two leading underscores would mean another name inside a class.
    """
    taken = keyword.iskeyword(text) or hasattr(nn.Module, text) or text in _TAKEN
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)) and not taken and not text.startswith(("__", "forward"))


def quoted(text: str) -> str:
    """A string literal of ASCII."""
    return f'"{text}"' if re.fullmatch(r"[A-Za-z0-9_.+ -]*", text) else ascii(text)


# What the statements themselves may mention; an input keeps its name, which callers may use, unless it is one of these.
_MENTIONED = {"self", "torch", "torchvision", "math", "collections", "nn", "F", *CALLABLE_BUILTINS, *keyword.kwlist}
_RESERVED = {*_MENTIONED, *dir(builtins)}
_SIZE_METHODS = {"size", "dim", "numel", "stride", "ndimension", "nelement", "is_contiguous", "is_floating_point"}
_SIZE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "itemsize"}


class VariableNames:
    """Gives each node of a graph the name of the variable that holds its result.

    Tensors take turns on x, y, z, ...; a result takes over the name of an argument that is not used again. Sizes and
    other small values keep the name that their node has.
    """

    def __init__(self, graph: Graph) -> None:
        self._names: dict[Node, str] = {}
        inputs = {str(node.target).lstrip("*") for node in graph.nodes if node.op == "placeholder"}
        unusable = _RESERVED | inputs | {node.name for node in graph.nodes}
        candidates = itertools.chain("xyzw", (f"t{i}" for i in itertools.count(1)))
        self._fresh = (name for name in candidates if name not in unusable)
        self._taken = set(_MENTIONED)
        self._free: list[str] = []
        self._pooled: set[str] = set()
        self._last_use = _last_uses(graph)
        self._small: set[Node] = set()

    def get(self, node: Node) -> str:
        """The name (or expression) of a node that was declared."""
        return self._names[node]

    def set(self, node: Node, expression: str) -> None:
        """Let an expression stand for a node."""
        self._names[node] = expression

    def is_taken_over(self, argument: Node, node: Node) -> bool:
        """Whether the variable of an argument is free once ``node`` has read it."""
        return self._last_use[argument] is node and self._names[argument] in self._pooled

    def declare(self, node: Node, *, may_inherit: bool = True) -> str:
        """Name the result of a node, after its arguments have been printed.

        ``may_inherit``: whether the name may be that of an argument which is not used again.
        """
        released = self._released(node)
        name = self._choose(node, released if may_inherit else [])
        self._names[node] = name
        self._free += [other for other in released if other != name]
        if node not in self._last_use and name in self._pooled:
            self._free.append(name)
        return name

    def release(self, node: Node) -> str:
        """Free the arguments of a node whose result is not used; the empty string."""
        self._free += self._released(node)
        return ""

    def _released(self, node: Node) -> list[str]:
        return [self._names[a] for a in dict.fromkeys(node.all_input_nodes) if self.is_taken_over(a, node)]

    def _choose(self, node: Node, released: list[str]) -> str:
        if node.op == "placeholder" or self._is_small(node):
            return self._own_name(node)
        if released:
            return released[0]
        if self._free:
            self._free.sort()
            return self._free.pop(0)
        name = next(self._fresh)
        self._pooled.add(name)
        return name

    def _own_name(self, node: Node) -> str:
        wanted = _wanted(node)
        candidates = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
        name = next(name for name in candidates if name not in self._taken)
        self._taken.add(name)
        if node.op == "placeholder":
            self._pooled.add(name)
        else:
            self._small.add(node)
        return name

    def _is_small(self, node: Node) -> bool:
        if node.op == "call_method":
            return node.target in _SIZE_METHODS
        if node.target is getattr:
            return node.args[1] in _SIZE_ATTRIBUTES
        inputs = node.all_input_nodes
        from_operator = getattr(node.target, "__module__", "") in (operator.__name__, "_operator", "builtins", "math")
        return node.op == "call_function" and from_operator and all(argument in self._small for argument in inputs)


def _wanted(node: Node) -> str:
    if node.op == "placeholder":
        return str(node.target).lstrip("*")
    return str(node.args[1]) if node.target is getattr else node.name


def _last_uses(graph: Graph) -> dict[Node, Node]:
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for argument in node.all_input_nodes:
            last[argument] = node
    return last
