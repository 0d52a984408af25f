"""A call of a torch function on tensors of given shapes, with a text form that serves as the key of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from fxprune.axes.expressions import Axis, Channels, Fixed, Gather, Product, factors_of, inside
from fxprune.rules.call import Call, TensorName, concrete

_FILLING = 0.5


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def made(self, device: torch.device) -> torch.Tensor:
        """A tensor of this kind. Its values are small but not denormal: denormals are slow on some processors."""
        floats = self.dtype.is_floating_point or self.dtype.is_complex
        return torch.full(self.shape, _FILLING if floats else 0, dtype=self.dtype, device=device)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{'x'.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Kernel:
    """A call of a torch function, by the name that its rule has, with a :class:`TensorSpec` for each tensor."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """The call as text: equal calls have equal keys."""
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.arguments)})"

    def prepared(self, device: torch.device) -> Callable[[], object]:
        """The call with its tensors created. Raises LookupError: torch has no function of that name."""
        function = function_of(self.name)
        values = {n: v.made(device) if isinstance(v, TensorSpec) else v for n, v in self.arguments}
        return lambda: function(**values)


def function_of(name: str) -> Callable[..., Any]:
    """torch's function of a canonical name. Raises LookupError: there is none."""
    for namespace in (functional, torch):
        if callable(function := getattr(namespace, name, None)):
            found: Callable[..., Any] = function
            return found
    raise LookupError(f"torch has no function {name}")


# Products of two tensors: one function under several names, whose arguments have different names.
_FUNCTIONS = {"mm": "matmul", "bmm": "matmul", "mv": "matmul", "dot": "matmul", "vdot": "matmul"}
# Literals that are sizes, each with the name of the note in which its rule keeps the axis.
_SIZES = {"groups": "groups"}


@dataclass(frozen=True)
class _Dim:
    """A size: its value at full width, and the widths that it is proportional to."""

    full: int
    widths: tuple[int, ...] = ()


@dataclass
class ShapedCall:
    """A call of a torch function, as a function of its widths."""

    name: str  # the function
    axes: tuple[Axis, ...] = ()  # its widths; sizes of tensors are products of these
    # By argument: the dims and the dtype.
    tensors: dict[str, tuple[tuple[_Dim, ...], torch.dtype]] = field(default_factory=dict)
    literals: dict[str, Any] = field(default_factory=dict)  # all other arguments
    sizes: dict[str, _Dim] = field(default_factory=dict)  # literals that are sizes

    @property
    def full(self) -> tuple[int, ...]:
        """The widths of the unpruned network."""
        return tuple(axis.size for axis in self.axes)

    def kernel(self, widths: tuple[int, ...]) -> Kernel:
        """The call at some widths."""
        shares = [width / axis.size for width, axis in zip(widths, self.axes, strict=True)]

        def size(dim: _Dim) -> int:
            return max(1, round(dim.full * math.prod(shares[w] for w in dim.widths)))

        made: dict[str, Any] = {n: TensorSpec(tuple(map(size, dims)), t) for n, (dims, t) in self.tensors.items()}
        made |= self.literals
        made |= {name: size(dim) for name, dim in self.sizes.items()}
        return Kernel(self.name, tuple(sorted(made.items(), key=lambda item: item[0])))


def shaped_call(
    call: Call, resolve: Callable[[Axis], Axis], seen: Mapping[fx.Node, Any], dtype_of: Callable[[str], torch.dtype]
) -> ShapedCall | None:
    """A call as a function of its widths; None if an argument is neither a tensor nor a literal.

    ``resolve`` resolves an axis, ``seen`` has each node's value in a run, ``dtype_of`` gives a tensor's dtype by name.
    """
    found = ShapedCall(_FUNCTIONS.get(call.name, call.name))
    tensors = {name: value for name, value in call.arguments.items() if call.has(name)}
    resolved = {name: tuple(map(resolve, call.tensor(name))) for name in tensors}
    noted = {name: resolve(call.notes[note]) for name, note in _SIZES.items() if name in call.arguments}
    widths = _Widths([*(a for axes in resolved.values() for a in axes), *noted.values()])
    for name, value in tensors.items():
        shape, dtype = _actual(value, resolved[name], seen, dtype_of)
        dims = tuple(widths.dim(axis, size) for axis, size in zip(resolved[name], shape, strict=True))
        found.tensors[name] = (dims, dtype)
    for name, value in call.arguments.items():
        if name in tensors or value is None or value is False:
            continue
        literal = concrete(value)
        if name in noted:
            found.sizes[name] = widths.dim(noted[name], int(literal))
        elif _is_literal(literal):
            found.literals[name] = literal
        else:
            return None
    found.axes = tuple(widths.axes)
    return found


def _actual(
    value: Any, axes: tuple[Axis, ...], seen: Mapping[fx.Node, Any], dtype_of: Callable[[str], torch.dtype]
) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype in the run, whose batch is the user's; the batch in the axes may differ."""
    if isinstance(value, TensorName):
        return tuple(axis.size for axis in axes), dtype_of(value.name)
    spec = seen[value]
    return spec.shape, spec.dtype


def _is_literal(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_literal, value))
    return isinstance(value, (bool, int, float, str))


class _Widths:
    """The widths of a call: the axes that vary. A product is one width unless another axis shares a factor with it."""

    def __init__(self, axes: list[Axis]) -> None:
        distinct = {_identity(axis): axis for axis in axes if _varies(axis)}
        owners: dict[Hashable, set[Hashable]] = {}
        for key, axis in distinct.items():
            for factor in factors_of(axis):
                owners.setdefault(_identity(factor), set()).add(key)
        split = {key for keys in owners.values() if len(keys) > 1 for key in keys}
        self._split = {key for key in split if isinstance(distinct[key], Product)}
        self.axes: list[Axis] = []
        self._numbers: dict[Hashable, int] = {}
        for key, axis in distinct.items():
            for part in factors_of(axis) if key in self._split else (axis,):
                if _varies(part) and _identity(part) not in self._numbers:
                    self._numbers[_identity(part)] = len(self.axes)
                    self.axes.append(part)

    def dim(self, axis: Axis, full: int) -> _Dim:
        """The dim for a size that belongs to ``axis`` and is ``full`` at full width."""
        if not _varies(axis):
            return _Dim(full)
        parts = factors_of(axis) if _identity(axis) in self._split else (axis,)
        return _Dim(full, tuple(self._numbers[_identity(part)] for part in parts if _varies(part)))


def _varies(axis: Axis) -> bool:
    return isinstance(axis, Channels) or any(map(_varies, inside(axis)))


def _identity(axis: Axis) -> Hashable:
    """A key that is equal for axes with equal expressions."""
    if isinstance(axis, Channels):
        return axis.serial
    if isinstance(axis, Fixed):
        return ("fixed", axis.size)
    picked = axis.index.tobytes() if isinstance(axis, Gather) else b""
    return (type(axis).__name__, *map(_identity, inside(axis)), picked)
