"""Arguments of a call as written into the graph: nodes for tensors and numbers, containers of nodes."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn.utils.rnn import PackedSequence

from fxprune.capture import objects
from fxprune.capture.numbers import Traced, plain, size_of
from fxprune.capture.samples import Sample
from fxprune.capture.settings import NewNode, Reads
from fxprune.capture.state import check_forgotten
from fxprune.errors import CaptureError

_LITERALS = (type(None), bool, int, float, str)
# What numpy calls an argument, for which torch's parser takes it.
_NUMPY = {"axis": "dim", "keepdims": "keepdim", "a": "input", "x": "input", "x1": "input", "x2": "other"}


@cache
def _names(func: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Names of a function's arguments, and of those tensors that come first, over all of its overloads."""
    if isinstance(func, types.FunctionType):
        own = tuple(inspect.signature(func).parameters)
        return frozenset(own), frozenset(own[:1])
    found: set[str] = set()
    first: set[str] = set()
    for schema in torch._C._jit_get_schemas_for_operator(f"aten::{getattr(func, '__name__', '')}"):
        names = ["input" if argument.name == "self" else argument.name for argument in schema.arguments]
        tensors = ["Tensor" in str(argument.type) for argument in schema.arguments]
        found.update(names if any(tensors) else ())  # others are of numbers, under names of their own
        first.update(names[:1] if any(tensors[:1]) else ())
    return frozenset(found), frozenset(first)


def as_torch_names_them(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments under the names in torch's documentation, with the first tensor in first place."""
    if args and _NUMPY.keys().isdisjoint(kwargs):
        return args, kwargs
    names, first = _names(func)
    known = names | {"input"} if args else names
    kwargs = {_NUMPY[n] if n in _NUMPY and n not in names and _NUMPY[n] in known else n: v for n, v in kwargs.items()}
    place = None if args else next((name for name in kwargs if name in first), None)
    return (args, kwargs) if place is None else ((kwargs.pop(place),), kwargs)


_SAME = frozenset((type(None), int, bool))
_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


class Arguments:
    """Writes arguments into ``graph``. ``new`` makes a node, ``node_of`` finds that of a tensor."""

    def __init__(self, graph: fx.Graph, new: NewNode, node_of: Callable[[torch.Tensor], fx.Node], reads: Reads) -> None:
        self._graph, self._new, self._node_of, self._reads = graph, new, node_of, reads
        self._devices: dict[int, tuple[torch.device, fx.Node]] = {}
        self._sizes: dict[tuple[fx.Node, int], fx.Node] = {}

    def of(self, value: Any) -> Any:
        """The value with nodes in the place of what was traced. Raises CaptureError: no graph can hold it."""
        kind = type(value)
        if kind in _SAME:
            return value
        if kind is tuple or kind is list:
            return kind(map(self.of, value))
        if kind is dict:
            return {key: self.of(item) for key, item in value.items()}
        return self._node_of(value) if isinstance(value, torch.Tensor) else self._other(value)

    def _other(self, value: Any) -> Any:
        if isinstance(value, Traced):
            return self._number(value)
        if isinstance(value, torch.Generator):
            raise CaptureError("the forward draws from a generator of its own, whose state no graph keeps")
        if isinstance(value, torch.device):
            return self._device(value)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray):
            return self._node_of(torch.from_numpy(value.copy()))
        if isinstance(value, type):  # a dtype by another name
            value = value.dtype if isinstance(value, type(torch.FloatTensor)) else _DTYPES.get(value, value)
        if isinstance(value, (torch.dtype, float, str)):
            return self._reads.argument(value, self._new)
        if isinstance(value, slice):
            return slice(*(self.of(v) for v in (value.start, value.stop, value.step)))
        return self._container(value)

    def size(self, node: fx.Node, dim: int) -> fx.Node:
        """The node of a tensor's size, one for each dim."""
        if (node, dim) not in self._sizes:
            with torch._C.DisableTorchFunction():
                value = int(node.meta["val"].shape[dim])
            self._sizes[node, dim] = self._new("call_method", "size", (node, dim), {}, value)
        return self._sizes[node, dim]

    def device_of(self, node: fx.Node, device: torch.device) -> torch.device:
        """A device object that is recognised later as the device of a node's tensor, by its identity."""
        device = torch.device(str(device))
        self._devices[id(device)] = (device, node)
        return device

    def knows(self, device: Any) -> bool:
        """Whether a device is that of a tensor of the graph."""
        return id(device) in self._devices

    def _device(self, device: torch.device) -> Any:
        if not self.knows(device):
            return device
        return self._new("call_function", getattr, (self._devices[id(device)][1], "device"), {}, device)

    def _container(self, value: Any) -> Any:
        made = objects.construction(value, self.of)
        if made is not None:
            # A packed sequence is an argument of layers; other containers of a class of their own are outputs.
            return self._new("call_function", *made, value if isinstance(value, PackedSequence) else None)
        if isinstance(value, list):
            return [self.of(v) for v in value]
        if isinstance(value, tuple):
            return tuple(self.of(v) for v in value)
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, Iterator)):
            kind = "an iterator" if isinstance(value, Iterator) else "a function"
            raise CaptureError(f"the forward passes {kind} to an operation, or returns one, which no graph can hold")
        return value

    def _number(self, value: Any) -> fx.Node:
        node: fx.Node | None = value.written
        if node is None or node.graph is not self._graph:
            check_forgotten(value)
            if value.function is size_of:
                node = self.size(*value.operands)
            else:
                operands = tuple(self.of(v) for v in value.operands)
                node = self._new("call_function", value.function, operands, {}, plain(value))
            value.written = node
        return node


def placeholders(
    forward: Callable[..., Any], sample: Sample, add: Callable[..., None]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make a placeholder for each argument in the sample, with its name in the forward.

    ``add(name, value, default, may_be_none)`` writes one. Returns the arguments for a call. Raises CaptureError: the
    sample does not fit the forward, or leaves out what no graph can hold.
    """
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*sample.args, **sample.kwargs)
    except TypeError as error:
        raise CaptureError(f"the sample does not fit forward{signature}: {error}") from error
    skipped = _skipped(signature, bound.arguments)
    optional = False
    for name, parameter in signature.parameters.items():
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        if name not in bound.arguments and name not in skipped:
            continue
        value = bound.arguments.get(name, parameter.default)
        literal = parameter.default if isinstance(parameter.default, _LITERALS) else None
        # What is given as it is by default may be left out, and all behind it.
        optional |= name in skipped or (isinstance(value, _LITERALS) and value is literal)
        default = (literal,) if optional and not stars else ()
        add(f"{stars}{name}", value, default, _may_be_none(parameter, name == next(iter(signature.parameters))))
    return bound.args, bound.kwargs


def _may_be_none(parameter: inspect.Parameter, first: bool) -> bool:
    """Whether a call may give None for a tensor: by the default, by the annotation, or where neither says anything."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    if parameter.annotation is not parameter.empty:
        words = str(parameter.annotation)
        return parameter.default is None or "None" in words or "Optional" in words
    return parameter.default is None or not first


def _skipped(signature: inspect.Signature, given: Mapping[str, Any]) -> list[str]:
    """Optional arguments that the sample leaves out before others. Raises CaptureError: a default is no literal."""
    places = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    last = max((number for number, p in enumerate(places) if p.name in given), default=-1)
    if any(p.kind is p.KEYWORD_ONLY and p.name in given for p in signature.parameters.values()):
        last = len(places)
    left_out = [p for p in places[: last + 1] if p.name not in given]
    if odd := [p.name for p in left_out if not isinstance(p.default, _LITERALS)]:
        raise CaptureError(f"the sample leaves out {odd[0]!r}, whose default no graph can hold: give it in the sample")
    return [p.name for p in left_out]
