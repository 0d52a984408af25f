"""One op of the captured graph as its rule sees it: arguments by name, axes of its tensors, and the rule's notes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import fx

from fxprune.axes.expressions import Axis, Cause, Fixed, Origin, has_fixed
from fxprune.axes.solver import Solver
from fxprune.rules.ops import is_written, writes_in_place

Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class TensorName:
    """A parameter or buffer of a leaf module, by its first state-dict name."""

    name: str


@dataclass(frozen=True, slots=True)
class Crossing:
    """A norm, softmax, reduction or product of activations that runs over ``axis``."""

    axis: Axis
    cause: Cause


_READ_BY_NUMBER = frozenset(("gather", "getitem", "index_select", "take_along_dim"))


@dataclass
class Ledger:
    """The records of the rules of one analysis, in addition to the dependencies.

    ``fewest``: axes that must keep a minimum number of elements. ``numbers``: for a node whose values are indices into
    an axis, such as those of ``topk``, that axis; if the node returns several tensors, a list of axes or None.
    ``selected``: axes of which an op reads only those elements of weights that such indices name.
    """

    crossings: list[Crossing] = field(default_factory=list)
    joins: list[Axis] = field(default_factory=list)
    fewest: list[tuple[Axis, int]] = field(default_factory=list)
    numbers: dict[fx.Node, Any] = field(default_factory=dict)
    selected: list[Axis] = field(default_factory=list)
    macs: list[tuple[fx.Node, float, Axes]] = field(default_factory=list)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    data: set[fx.Node] = field(default_factory=set)

    def follow(self, node: fx.Node) -> None:
        """Add a node to ``data`` if its values depend on the inputs, and with it the tensors that it writes to."""
        if node.op == "placeholder" or (node.target != "size" and any(n in self.data for n in node.all_input_nodes)):
            self.data.add(node)
            target = node.args[0] if writes_in_place(node) and node.args else None
            while isinstance(target, fx.Node) and target not in self.data and target.op != "get_attr":
                self.data.add(target)
                target = target.args[0] if target.args else None


@dataclass
class Call:
    """A rule's view of one node.

    ``arguments``: values by name; tensors are FX nodes or :class:`TensorName`. ``result``: set by the rule; a tuple of
    axes for a tensor, a list of such tuples for several tensors, None if it is not a tensor. ``notes``: values that the
    rule stores for its repair half. ``attributes``: the axes whose sizes attributes of a layer hold, by attribute.
    """

    node: fx.Node
    name: str
    arguments: dict[str, Any]
    solver: Solver
    cause: Cause
    axes_of: Callable[[Any], Any]
    shape_of: Callable[[Any], tuple[int, ...]]
    ledger: Ledger
    attribute_of: Callable[[str], torch.Tensor]
    result: Any = None
    notes: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Axis] = field(default_factory=dict)
    understood: set[fx.Node] = field(default_factory=set)

    def stores(self, **axes: Axis) -> None:
        """Note that attributes of the layer hold the sizes of axes; in the smaller network they hold the kept sizes."""
        self.attributes |= axes

    def has(self, name: str) -> bool:
        """Whether the argument is a tensor."""
        return is_tensor(self.arguments.get(name))

    def tensor(self, name: str) -> Axes:
        """The axes of a tensor argument."""
        return tuple(self.axes_of(self.arguments[name]))

    def tensors(self, name: str) -> list[Axes]:
        """The axes of a list of tensors, or of the tensors that one node holds."""
        value = self.arguments[name]
        if isinstance(value, fx.Node):
            return [tuple(a) for a in self.axes_of(value)]
        return [tuple(self.axes_of(v)) for v in value]

    def number(self, name: str) -> Any:
        """The value of a number argument, even if it is computed in the graph."""
        return concrete(self.arguments.get(name))

    def numbers(self, name: str) -> tuple[int, ...]:
        """The values of a sequence of integers; a single integer is a sequence of one."""
        value = concrete(self.arguments.get(name))
        return tuple(value) if isinstance(value, (list, tuple, torch.Size)) else (value,)

    def varies(self, value: Any) -> bool:
        """Whether a number is computed from a size of the input, so that it differs for other inputs."""
        if isinstance(value, slice):
            return any(map(self.varies, (value.start, value.stop, value.step)))
        if not isinstance(value, fx.Node) or is_tensor(value):
            return False
        if value.op == "call_method" and value.target == "size":
            tensor, dim = value.args
            return isinstance(dim, int) and has_fixed(self.solver.resolve(self.axes_of(tensor)[dim]))
        return any(map(self.varies, value.all_input_nodes))

    def dim(self, name: str = "dim", ndim: int | None = None) -> int:
        """A dim argument counted from the front."""
        rank = len(self.tensor("input")) if ndim is None else ndim
        return int(self.number(name)) % max(rank, 1)

    def dims(self, name: str = "dim") -> tuple[int, ...]:
        """A dims argument counted from the front; None or an empty one means every dim."""
        rank, value = len(self.tensor("input")), self.number(name)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            return tuple(range(rank))
        values = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(int(d) % max(rank, 1) for d in values)

    @property
    def value(self) -> Any:
        """The node's value on the meta device."""
        return self.node.meta["val"]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the node's only tensor."""
        return tuple(int(s) for s in self.value.shape)

    def stored(self, value: Any) -> NDArray[Any] | None:
        """The values of an argument that is a buffer or constant and that nothing in the graph writes to, else None."""
        name = parameter_name(value)
        if name is None or (isinstance(value, fx.Node) and is_written(value)):
            return None
        tensor = self.attribute_of(name)
        return None if tensor.is_meta or isinstance(tensor, torch.nn.Parameter) else tensor.detach().cpu().numpy()

    def is_read(self, item: int) -> bool:
        """Whether anything reads item ``item`` of an op that returns several tensors."""
        for user in self.node.users:
            takes_one = user.target is operator.getitem and user.args[0] is self.node
            if not takes_one or (user.args[1] == item and user.users):
                return True
        return False

    def numbered_by(self, value: Any) -> Axis | None:
        """The axis that a tensor holds indices into. A rule that asks must handle them; else the axis stays."""
        axis: Axis | None = self.ledger.numbers.get(value) if isinstance(value, fx.Node) else None
        if axis is not None:
            self.understood.add(value)
        return axis

    def fresh(self, size: int, dim: int = 0) -> Axis:
        """A new variable, created in dim ``dim`` of this node's output."""
        return self.solver.fresh(int(size), Origin(self.node.name, dim))

    def fixed(self, size: int, why: str = "") -> Axis:
        """An axis of fixed size."""
        return Fixed(int(size), why or f"{self.cause.op} fixes it")

    def unify(self, left: Axis, right: Axis) -> None:
        """Tie two axes."""
        self.solver.unify(left, right, self.cause)

    def unify_all(self, left: Sequence[Axis], right: Sequence[Axis]) -> None:
        """Tie axes pairwise."""
        for a, b in zip(left, right, strict=True):
            self.unify(a, b)

    def pin(self, axis: Axis, reason: str) -> None:
        """Keep every channel of an axis."""
        self.solver.pin(axis, reason, self.cause)

    def pin_all(self, axes: Iterable[Axis], reason: str) -> None:
        """Keep every channel of several axes."""
        for axis in axes:
            self.pin(axis, reason)

    def pin_inputs(self, reason: str) -> None:
        """Keep every channel of everything the op reads."""
        for node in self.node.all_input_nodes:
            axes = self.axes_of(node)
            for given in [axes] if isinstance(axes, tuple) else axes or []:
                self.pin_all(given, reason)

    def crosses(self, axes: Iterable[Axis]) -> None:
        """Note that values of different channels of these axes are mixed without a weight per channel."""
        self.ledger.crossings.extend(Crossing(a, self.cause) for a in axes if not isinstance(a, Fixed))

    def is_data(self, value: Any) -> bool:
        """Whether an argument's values depend on the inputs, not only on parameters and buffers."""
        return isinstance(value, fx.Node) and value in self.ledger.data

    def joins(self, axes: Iterable[Axis]) -> None:
        """Note that an op combines two activations elementwise on these axes."""
        self.ledger.joins.extend(a for a in axes if not isinstance(a, Fixed))

    def keeps(self, axes: Iterable[Axis], fewest: int = 2) -> None:
        """Note that the op fails or behaves differently with fewer elements on these axes."""
        self.ledger.fewest.extend((a, fewest) for a in axes if a.size >= fewest > 1 and not isinstance(a, Fixed))

    def gives_numbers(self, *axes: Axis | None) -> None:
        """Note for each tensor of the result the axis that its values are indices into, or None."""
        self.ledger.numbers[self.node] = axes[0] if isinstance(self.value, torch.Tensor) else list(axes)

    def looked_up(self, axis: Axis, numbers: Any) -> bool:
        """Tie an axis to the one that ``numbers`` holds indices into; True if it now may shrink."""
        numbered = self.numbered_by(numbers)
        if numbered is not None and numbered.size == axis.size:
            self.unify(axis, numbered)
            if self.name in _READ_BY_NUMBER and not self.is_data(self.arguments["input"]):
                self.ledger.selected.append(axis)
            return True
        self.understood.discard(numbers)
        return False

    def macs(self, axes: Iterable[Axis], coefficient: float = 1.0) -> None:
        """Count ``coefficient`` times the product of the sizes of ``axes`` multiply-accumulates."""
        self.ledger.macs.append((self.node, coefficient, tuple(axes)))

    def role(self, name: str, *roles: str) -> None:
        """Set the roles of a weight argument's dims: "out", "in" or "scale"."""
        tensor = parameter_name(self.arguments.get(name))
        if tensor is not None:
            for dim, role in enumerate(roles):
                self.ledger.roles.setdefault((tensor, dim), role)

    def output_fixed(self, why: str) -> None:
        """Set the output axes, all fixed."""
        self.result = fixed_axes(self.value, why)


def fixed_axes(value: Any, why: str) -> Any:
    """Fixed axes, in the structure of a value."""
    if isinstance(value, torch.Tensor):
        return tuple(Fixed(int(s), why) for s in value.shape)
    if isinstance(value, (list, tuple)):
        return [fixed_axes(v, why) for v in value]
    if isinstance(value, dict):
        return {k: fixed_axes(v, why) for k, v in value.items()}
    return None


def is_tensor(value: Any) -> bool:
    """Whether an argument is one tensor: a node with a tensor value, or a module's parameter."""
    if isinstance(value, fx.Node):
        return isinstance(value.meta.get("val"), torch.Tensor)
    return isinstance(value, TensorName)


def parameter_name(value: Any) -> str | None:
    """The state-dict name of an argument that is itself a parameter or buffer, else None."""
    if isinstance(value, TensorName):
        return value.name
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return str(value.target)
    return None


def parameter_names(call: Call) -> list[str]:
    """The state-dict names of every parameter and buffer among the arguments of a call."""
    return [name for value in call.arguments.values() if (name := parameter_name(value)) is not None]


def concrete(value: Any) -> Any:
    """A literal argument with every node in it replaced by its value."""
    if type(value) is int or value is None:  # most are
        return value
    if isinstance(value, fx.Node):
        return concrete(value.meta["val"])
    if isinstance(value, torch.Size):
        return tuple(int(v) for v in value)
    if isinstance(value, (list, tuple)):
        return type(value)(concrete(v) for v in value)
    if isinstance(value, slice):
        return slice(concrete(value.start), concrete(value.stop), concrete(value.step))
    return value
