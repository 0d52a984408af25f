"""The ``forward`` of a generated ``model.py``: one statement per node, in the style of handwritten code."""

from __future__ import annotations

import builtins
import itertools
import keyword
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fxprune.errors import ArtefactError
from fxprune.saving.descriptions import Json
from fxprune.saving.targets import CALLABLE_BUILTINS
from fxprune.saving.values import GraphCodec, quoted
from fxprune.util.copies import is_constant

Access = Callable[[str], str]
_WIDTH, _INDENT = 120, 8
_SYMBOLS = (
    "add + sub - mul * truediv / floordiv // mod % pow ** matmul @ and_ & or_ | xor ^ lshift << rshift >> eq == ne != "
    "lt < le <= gt > ge >= is_ is"
).split()
_INFIX = {f"operator.{name}": symbol for name, symbol in zip(_SYMBOLS[::2], _SYMBOLS[1::2], strict=True)}
_INFIX["operator.is_not"] = "is not"
_IN_PLACE = {
    f"operator.i{name}": f"{_INFIX[known]}="
    for known in _INFIX
    if hasattr(operator, f"i{(name := known[9:].rstrip('_'))}")
}
_PREFIX = {"operator.neg": "-", "operator.pos": "+", "operator.invert": "~", "operator.not_": "not "}
_SHORT_NAMES = {"torch.nn.functional.": "F.", "builtins.": ""}
_MENTIONED = {"self", "torch", "torchvision", "math", "collections", "nn", "F", *CALLABLE_BUILTINS, *keyword.kwlist}
# Methods, attributes and functions whose results are sizes and other small values.
_SIZE_METHODS = {"size", "dim", "numel", "stride", "ndimension", "nelement", "is_contiguous", "is_floating_point"}
_SIZE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "itemsize"}
_OF_NUMBERS = ("operator.", "builtins.", "math.")
_CONVERSION = '''
    def _apply(self, fn, recurse=True):
        """Convert or move all tensors; constants of the forward keep their type."""
        constants = {{name: self._buffers[name] for name in {constants!a}}}
        super()._apply(fn, recurse)
        for name, constant in constants.items():
            if self._buffers[name].dtype != constant.dtype:
                self._buffers[name] = constant.to(self._buffers[name].device)
        return self
'''


def call(head: str, arguments: list[str], indent: int, tail: str = ")", reserve: int = 0) -> str:
    """``head``, arguments and ``tail`` on one line if it fits after ``indent`` and ``reserve``, else on several."""
    line = head + ", ".join(arguments) + tail
    if "\n" not in line and indent + reserve + len(line) <= _WIDTH:
        return line
    inner = " " * (indent + 4)
    return head + "\n" + "".join(f"{inner}{argument},\n" for argument in arguments) + " " * indent + tail


def conversion_source(tensors: Mapping[str, Any], prefix: str) -> str:
    """The method that converts a class with constants; ``prefix``: the prefix of their names."""
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix) and is_constant(name))
    constants = [name for name in names if "." not in name]
    return _CONVERSION.format(constants=constants) if constants else ""


def forward_source(graphs: Mapping[str, list[Json]], access: Access, imported: Access, untraced: str = "") -> str:
    """The ``forward`` method; if there are several graphs, it calls the one of the current mode and the input's sizes.

    ``access`` returns the expression for the path of a module or tensor, ``imported`` the name for an import path.
    ``untraced``: why there is no graph of training mode, so that a call in it raises.
    """
    printers = {name: _Printer(nodes, access, imported) for name, nodes in graphs.items()}
    if set(graphs) == {"eval"} and not untraced:
        return printers["eval"].method("forward")
    taken = [printer.parameters for printer in printers.values()]
    # The graphs take different arguments: those of a call select the graph.
    parameters = taken[0] if all(one == taken[0] for one in taken) else ["*args", "**kwargs"]
    names = ", ".join(parameter.partition("=")[0] for parameter in parameters)
    sized = has_specializations(graphs)
    lines = [f"forward = self.forward_for({names})"] if sized else [f"forward = {_choice(graphs, '')}"]
    if untraced:
        reason = ascii(f"the network is in training mode, of which there is no graph ({untraced}): call eval()")
        lines = ["if self.training:", f"    raise RuntimeError({reason})", *lines]
    body = "".join(f"        {line}\n" for line in [*lines, f"return forward({names})"])
    methods = [printer.method(f"forward_{name}") for name, printer in printers.items()]
    head = f"    def forward({', '.join(['self', *parameters])}):\n{body}"
    return "\n".join([head, *[_forward_for(graphs)] * sized, *methods])


def has_specializations(graphs: Mapping[str, Any]) -> bool:
    """Whether there are graphs for inputs of other sizes."""
    return "eval_1" in graphs


def _choice(graphs: Mapping[str, Any], suffix: str) -> str:
    """The method of the current mode."""
    if f"training{suffix}" not in graphs:
        return f"self.forward_eval{suffix}"
    return f"self.forward_training{suffix} if self.training else self.forward_eval{suffix}"


def _forward_for(graphs: Mapping[str, Any]) -> str:
    suffixes = [name.removeprefix("eval") for name in graphs if name.startswith("eval")]
    forwards = call("forwards = [", [_choice(graphs, suffix) for suffix in suffixes], 8, "]")
    return f'''    def forward_for(self, *args, **kwargs):
        """The forward that takes inputs of these sizes."""
        {forwards}
        return forwards[number_of_forward(self, [forward.__func__ for forward in forwards], args, kwargs)]
'''


def _references(data: Any) -> Iterator[str]:
    """Names of the nodes that arguments refer to."""
    if isinstance(data, dict) and set(data) == {"node"}:
        yield data["node"]
    elif isinstance(data, (dict, list)):
        for inner in data.values() if isinstance(data, dict) else data:
            yield from _references(inner)


def _inputs(node: Json) -> list[str]:
    """Names of the nodes that a node reads, each once."""
    return list(dict.fromkeys(_references([*node.get("args", []), *node.get("kwargs", {}).values()])))


class _Variables:
    """Assigns each node of a graph the name of the variable that holds its result.

    Tensors are called x, y, z, ...; a result takes over the name of an argument that is not used again. Sizes and other
    small values keep the name of their node. ``names`` may hold an expression instead of a variable.
    """

    def __init__(self, nodes: list[Json]) -> None:
        self.names: dict[str, str] = {}
        self._last_use = {used: node["name"] for node in nodes for used in _inputs(node)}
        inputs = {node["target"].lstrip("*") for node in nodes if node["op"] == "placeholder"}
        unusable = {*_MENTIONED, *dir(builtins), *inputs, *(node["name"] for node in nodes)}
        candidates = itertools.chain("xyzw", (f"t{i}" for i in itertools.count(1)))
        self._fresh = (name for name in candidates if name not in unusable)
        self._taken = set(_MENTIONED)
        self._pooled: set[str] = set()
        self._free: set[str] = set()
        self._small: set[str] = set()

    def is_used(self, node: Json) -> bool:
        """Whether any node reads the result."""
        return node["name"] in self._last_use

    def is_taken_over(self, argument: str, node: Json) -> bool:
        """Whether the variable of an argument is free once ``node`` has read it."""
        return self._last_use[argument] == node["name"] and self.names[argument] in self._pooled

    def declare(self, node: Json, *, may_inherit: bool = True) -> str:
        """Name the result of a node after its arguments are printed; it may inherit an argument's name."""
        released = [self.names[used] for used in _inputs(node) if self.is_taken_over(used, node)]
        if node["op"] == "placeholder" or self._is_small(node):
            name = self._own_name(node)
        else:
            usable = [*(released if may_inherit else []), *sorted(self._free)]
            name = usable[0] if usable else next(self._fresh)
            self._pooled.add(name)
        self._free = {*self._free, *released} - {name}
        if not self.is_used(node) and name in self._pooled:
            self._free.add(name)
        self.names[node["name"]] = name
        return name

    def release(self, node: Json) -> str:
        """Free the arguments of a node whose result is not used; returns the empty string."""
        self._free |= {self.names[used] for used in _inputs(node) if self.is_taken_over(used, node)}
        return ""

    def _own_name(self, node: Json) -> str:
        wanted: str = node["name"]
        if node["op"] == "placeholder":
            wanted = node["target"].lstrip("*")
        elif node["target"] == "builtins.getattr":
            wanted = node["args"][1]
        candidates = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
        name = next(name for name in candidates if name not in self._taken)
        self._taken.add(name)
        if node["op"] == "placeholder":
            self._pooled.add(name)
        else:
            self._small.add(node["name"])
        return name

    def _is_small(self, node: Json) -> bool:
        if node["op"] == "call_method":
            return node["target"] in _SIZE_METHODS
        if node["target"] == "builtins.getattr":
            return node["args"][1] in _SIZE_ATTRIBUTES
        of_numbers = node["op"] == "call_function" and str(node["target"]).startswith(_OF_NUMBERS)
        return of_numbers and self._small.issuperset(_inputs(node))


class _Printer:
    """The parameters and the statements of one graph."""

    def __init__(self, nodes: list[Json], access: Access, imported: Access) -> None:
        self._access = access
        self._imported = imported
        self._variables = _Variables(nodes)
        self._value = GraphCodec(self._variables.names).print
        self.parameters: list[str] = []
        self._lines = list(self._statements(nodes))

    def method(self, name: str) -> str:
        """A method that runs the graph."""
        body = "".join(f"{' ' * _INDENT}{line}\n" for line in self._lines)
        return f"    def {name}({', '.join(['self', *self.parameters])}):\n{body}"

    def _statements(self, nodes: list[Json]) -> Iterator[str]:
        """One statement per node, with a comment where another part of the network begins."""
        present = ""
        for node in nodes:
            if node["op"] == "placeholder":
                self.parameters.append(self._parameter(node))
            elif node["op"] == "get_attr":
                # Reading an attribute costs nothing, so it is printed at each use.
                self._variables.names[node["name"]] = self._access(node["target"])
            else:
                if node["op"] == "call_module" and (section := _section(node["target"])) != present:
                    present = section
                    yield from [f"# {quoted(section)[1:-1]}"] if section else []
                yield self._statement(node)

    def _parameter(self, node: Json) -> str:
        name, target = self._variables.declare(node), node["target"]
        default = f"={self._value(node['args'][0])}" if node.get("args") else ""
        return "*" * (len(target) - len(target.lstrip("*"))) + name + default

    def _statement(self, node: Json) -> str:
        args = node.get("args", [])
        if node["op"] == "output":
            return f"return {self._value(args[0])}"
        if node["target"] == "operator.setitem":
            if self._variables.is_used(node):
                raise ArtefactError(f"the graph reads the result of {node['name']!r:.80}, an assignment without one")
            line = f"{self._value(args[0])}[{self._index(args[1])}] = {self._value(args[2])}"
            return line + self._variables.release(node)
        if isinstance(node["target"], str) and node["target"] in _IN_PLACE and len(args) == 2:
            return self._in_place(node, *args)
        used = self._variables.is_used(node)
        start = f"{self._variables.declare(node)} = " if used else self._variables.release(node)
        return start + self._expression(node, args, len(start))

    def _in_place(self, node: Json, left: Any, right: Any) -> str:
        symbol, value, source = _IN_PLACE[node["target"]], self._value(right), self._value(left)
        # For a number the update creates a new value, so the old one must keep its variable if it is used again.
        inherits = isinstance(left, dict) and "node" in left and self._variables.is_taken_over(left["node"], node)
        name = self._variables.declare(node, may_inherit=inherits)
        update = f"{name} {symbol} {value}"
        return update if name == source else f"{name} = {source}; {update}"

    def _expression(self, node: Json, args: list[Any], reserve: int) -> str:
        target = node["target"]
        if node["op"] == "call_method":
            head, args = f"{self._owner(args[0])}.{target}", args[1:]
        elif node["op"] == "call_module":
            head = self._access(target)
        elif isinstance(target, dict):
            head = self._made(target)
        else:
            if (operation := self._operation(target, args)) is not None:
                return operation
            prefix = next((prefix for prefix in _SHORT_NAMES if target.startswith(prefix)), "")
            head = _SHORT_NAMES.get(prefix, "") + target.removeprefix(prefix)
        keywords = [f"{key}={self._value(value)}" for key, value in node.get("kwargs", {}).items()]
        return call(f"{head}(", [*map(self._value, args), *keywords], _INDENT, reserve=reserve)

    def _made(self, target: Json) -> str:
        """The expression for a class that the network returns, for a custom function or for an operator."""
        ((kind, content),) = target.items()
        if kind == "operator":
            return str(content).replace(":", ".")
        return content[0] if kind == "namedtuple" else self._imported(content) + ".apply" * (kind == "custom")

    def _operation(self, target: str, args: list[Any]) -> str | None:
        """A use of an operator, an index or an attribute; None for any other function."""
        if target in _INFIX and len(args) == 2:
            left = self._value(args[0])
            # -1 ** x would be parsed as -(1 ** x).
            return f"{f'({left})' if left.startswith('-') else left} {_INFIX[target]} {self._value(args[1])}"
        if target in _PREFIX and len(args) == 1:
            return f"{_PREFIX[target]}{self._owner(args[0])}"
        if target == "operator.getitem":
            return f"{self._owner(args[0])}[{self._index(args[1])}]"
        return f"{self._owner(args[0])}.{args[1]}" if target == "builtins.getattr" else None

    def _owner(self, value: Any) -> str:
        """A value before a dot: numbers in parentheses, because ``1.real`` is not valid."""
        plain = isinstance(value, (str, list)) or (isinstance(value, dict) and {*value} <= {"node", "tuple", "dict"})
        return self._value(value) if plain else f"({self._value(value)})"

    def _index(self, index: Any) -> str:
        parts = index.get("tuple") if isinstance(index, dict) else None
        if not parts:
            return self._index_part(index)
        return ", ".join(map(self._index_part, parts)) + ("," if len(parts) == 1 else "")

    def _index_part(self, part: Any) -> str:
        if not isinstance(part, dict) or "slice" not in part:
            return self._value(part)
        start, stop, step = ("" if bound is None else self._value(bound) for bound in part["slice"])
        return f"{start}:{stop}" + (f":{step}" if step else "")


def _section(path: str) -> str:
    """The part of the network that a layer belongs to: its path up to the first number, or its first two names."""
    parents = path.split(".")[:-1]
    position = next((position for position, name in enumerate(parents) if name.isdigit()), 1)
    return ".".join(parents[: position + 1])
