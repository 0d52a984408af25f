"""The values that a saved folder may hold: as JSON data, and as source.

They are numbers, strings, ``None``, slices, dtypes and the like, and lists, tuples and dicts of them; in a graph also
references to nodes, in a sample also shapes of tensors. Plain JSON values stand for themselves; everything else is an
object with one key that names its kind, such as ``{"slice": [0, null, 2]}``. Decoding looks kinds up in a table and can
therefore build nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from fxprune.capture.samples import Sample
from fxprune.errors import ArtefactError

_NAMED_TYPES: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
_MOST_DIMS = 64


def encode(value: Any) -> Any:
    """JSON data for a literal value or a reference to a node.

    Raises:
        ArtefactError: the value is of a kind that cannot be written down.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    return _encode_tagged(value)


def _encode_tagged(value: Any) -> dict[str, Any]:
    for kind, named_type in _NAMED_TYPES.items():
        if isinstance(value, named_type):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, Node):
        return {"node": value.name}
    if type(value) in (tuple, torch.Size):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    if value is ...:
        return {"ellipsis": None}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise ArtefactError(f"cannot write a value of type {type(value).__module__}.{type(value).__qualname__}: {value!r}")


def decode(data: Any, nodes: Mapping[str, Node]) -> Any:
    """The value that :func:`encode` wrote; ``nodes`` maps names to the nodes built so far.

    Raises:
        ArtefactError: the data is not what :func:`encode` writes.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode(item, nodes) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ArtefactError(f"the graph holds a value of unknown form: {data!r:.80}")
    ((kind, content),) = data.items()
    if kind == "node":
        return _look_up(nodes, content)
    if kind not in _DECODERS:
        raise ArtefactError(f"the graph holds a value of unknown kind {kind!r}")
    try:
        return _DECODERS[kind](content, lambda item: decode(item, nodes))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ArtefactError(f"the graph holds a malformed {kind}: {content!r:.80}") from error


def _look_up(nodes: Mapping[str, Node], name: Any) -> Node:
    if not isinstance(name, str) or name not in nodes:
        raise ArtefactError(f"the graph refers to {name!r:.80}, which no earlier node is called")
    return nodes[name]


def _named(kind: str) -> Callable[[Any, Callable[[Any], Any]], Any]:
    def decoder(name: Any, _: Callable[[Any], Any]) -> Any:
        # Not getattr: torch imports some of its parts when they are first asked for.
        value = vars(torch).get(name)
        if not isinstance(value, _NAMED_TYPES[kind]):
            raise ArtefactError(f"the graph names torch.{name!s:.80}, which is no {kind}")
        return value

    return decoder


_DECODERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "float": lambda text, _: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}.__getitem__(text),
    "tuple": lambda items, inner: tuple(inner(item) for item in items),
    "dict": lambda pairs, inner: {inner(key): inner(item) for key, item in pairs},
    "slice": lambda parts, inner: slice(*(inner(part) for part in parts)),
    "ellipsis": lambda _, __: ...,
    "complex": lambda parts, _: complex(*parts),
    "device": lambda text, _: torch.device(text),
    **{kind: _named(kind) for kind in _NAMED_TYPES},
}


def to_source(value: Any, name_of: Callable[[Node], str]) -> str:
    """Python source of a literal value; ``name_of`` gives the variable that holds a node's result."""
    if isinstance(value, Node):
        return name_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value!r}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_source(k, name_of)}: {to_source(v, name_of)}" for k, v in value.items()) + "}"
    if isinstance(value, slice):
        return f"slice({', '.join(to_source(part, name_of) for part in (value.start, value.stop, value.step))})"
    if isinstance(value, list):
        return f"[{', '.join(to_source(item, name_of) for item in value)}]"
    if isinstance(value, tuple):
        items = [to_source(item, name_of) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    return "..." if value is ... else repr(value)


def _quoted(text: str) -> str:
    quoted = repr(text)
    plain = quoted[0] == "'" and '"' not in text and "\\" not in quoted
    return f'"{text}"' if plain else quoted


# -- samples -----------------------------------------------------------------------------------------------------------


def encode_sample(sample: Sample | None) -> Any:
    """Shape and dtype of every tensor, and every other value that can be written; None where there is no sample."""
    if sample is None:
        return None
    kwargs = {key: _encode_input(value) for key, value in sample.kwargs.items()}
    data = {"args": [_encode_input(value) for value in sample.args], "kwargs": kwargs}
    return data | ({"others": [encode_sample(other) for other in sample.others]} if sample.others else {})


def _encode_input(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": [list(value.shape), encode(value.dtype)]}
    if isinstance(value, list):
        return [_encode_input(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [_encode_input(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), _encode_input(item)] for key, item in value.items()]}
    return encode(value)


def decode_sample(data: Any) -> Sample | None:
    """The sample that :func:`encode_sample` wrote, its tensors on the meta device."""
    if data is None:
        return None
    return Sample(*_call(data), tuple(Sample(*_call(other)) for other in data.get("others", ())))


def _call(data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs = {key: _decode_input(value) for key, value in data["kwargs"].items()}
    return tuple(_decode_input(value) for value in data["args"]), kwargs


def _decode_input(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode_input(item) for item in data]
    if isinstance(data, dict) and len(data) == 1:
        ((kind, content),) = data.items()
        if kind == "tensor":
            return _meta_tensor(*content)
        if kind == "tuple":
            return tuple(_decode_input(item) for item in content)
        if kind == "dict":
            return {decode(key, {}): _decode_input(value) for key, value in content}
    return decode(data, {})


def _meta_tensor(shape: Any, dtype: Any) -> torch.Tensor:
    sizes = shape if isinstance(shape, list) and len(shape) <= _MOST_DIMS else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise ArtefactError(f"the sample has a tensor of shape {shape!r:.80}")
    return torch.empty(shape, dtype=decode(dtype, {}), device="meta")
