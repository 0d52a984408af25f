"""The values that a saved folder may hold: a table of kinds, and how each is recognised, written, read and printed.

Numbers, strings, ``None`` and lists are written directly. Everything else is an object with one key that names its
kind, such as ``{"slice": [0, null, 2]}``; reading looks up the kind and therefore cannot build anything else. Graphs
add references to nodes, samples add tensors, and attributes add the kinds in :mod:`fxprune.saving.opaque`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from fxprune.capture.samples import Sample
from fxprune.errors import ArtefactError

_MOST_DIMS = 64


class Kind(NamedTuple):
    """One kind of value. ``write``, ``read`` and ``print`` get the value or data, and the :class:`Codec` for its parts.

    Attributes:
        known: whether a value is of this kind.
        write: the JSON data of a value.
        read: the value of JSON data.
        print: an expression in Python that makes the value of JSON data.
    """

    known: Callable[[Any], bool]
    write: Callable[[Any, Any], Any]
    read: Callable[[Any, Any], Any]
    print: Callable[[Any, Any], str]


class Codec:
    """Writes, reads and prints nested values; the given ``kinds`` are tried before the :data:`KINDS`."""

    def __init__(self, kinds: Mapping[str, Kind] | None = None) -> None:
        self._kinds = {**(kinds or {}), **KINDS}

    def write(self, value: Any) -> Any:
        """JSON data for a value. Raises ArtefactError: the value is of a kind that cannot be written."""
        for name, kind in self._kinds.items():
            if kind.known(value):
                return {name: kind.write(value, self)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return [self.write(item) for item in value] if isinstance(value, list) else self.write_other(value)

    def write_other(self, value: Any) -> Any:
        """JSON data for a value of none of the kinds."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ArtefactError(f"cannot write a value of type {kind}: {value!r}")

    def read(self, data: Any) -> Any:
        """The value that :meth:`write` wrote. Raises ArtefactError: the data do not have that form."""
        if data is None or isinstance(data, (bool, int, float, str)):
            return data
        if isinstance(data, list):
            return [self.read(item) for item in data]
        if not isinstance(data, dict) or len(data) != 1:
            raise ArtefactError(f"the graph holds a value of unknown form: {data!r:.80}")
        ((name, content),) = data.items()
        if name not in self._kinds:
            raise ArtefactError(f"the graph holds a value of unknown kind {name!r:.80}")
        try:
            return self._kinds[name].read(content, self)
        except ArtefactError:
            raise
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            raise ArtefactError(f"the graph holds a malformed {name}: {content!r:.80}") from error

    def print(self, data: Any) -> str:
        """Python source that makes the value of the data."""
        if isinstance(data, dict):
            ((name, content),) = data.items()
            return self._kinds[name].print(content, self)
        if isinstance(data, list):
            return f"[{self.prints(data)}]"
        return quoted(data) if isinstance(data, str) else repr(data)

    def prints(self, items: list[Any]) -> str:
        """The source of several values, separated by commas."""
        return ", ".join(map(self.print, items))


def quoted(text: str) -> str:
    """A string as an ASCII literal."""
    return f'"{text}"' if re.fullmatch(r"[^\"\\\x00-\x1f\x7f-\U0010ffff]*", text) else ascii(text)


def _of_torch(kind: type) -> Kind:
    def read(name: Any, _: Any) -> Any:
        # Not getattr: torch imports some of its parts on first access.
        if not isinstance(value := vars(torch).get(name), kind):
            raise ArtefactError(f"the graph names torch.{name!s:.80}, which is no {kind.__name__}")
        return value

    return Kind(
        lambda value: isinstance(value, kind),
        lambda value, _: str(value).removeprefix("torch."),
        read,
        lambda name, _: f"torch.{name}",
    )


KINDS: dict[str, Kind] = {
    "float": Kind(
        lambda value: isinstance(value, float) and not math.isfinite(value),
        lambda value, _: repr(value),
        lambda text, _: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[text],
        lambda text, _: f'float("{text}")',
    ),
    "tuple": Kind(
        lambda value: type(value) in (tuple, torch.Size),
        lambda value, codec: [codec.write(item) for item in value],
        lambda items, codec: tuple(codec.read(item) for item in items),
        lambda items, codec: f"({codec.prints(items)}{',' if len(items) == 1 else ''})",
    ),
    "dict": Kind(
        lambda value: isinstance(value, dict),
        lambda value, codec: [[codec.write(key), codec.write(item)] for key, item in value.items()],
        lambda pairs, codec: {codec.read(key): codec.read(item) for key, item in pairs},
        lambda pairs, codec: "{" + ", ".join(": ".join(map(codec.print, pair)) for pair in pairs) + "}",
    ),
    "slice": Kind(
        lambda value: isinstance(value, slice),
        lambda value, codec: [codec.write(part) for part in (value.start, value.stop, value.step)],
        lambda parts, codec: slice(*(codec.read(part) for part in parts)),
        lambda parts, codec: f"slice({codec.prints(parts)})",
    ),
    "ellipsis": Kind(lambda value: value is ..., lambda *_: None, lambda *_: ..., lambda *_: "..."),
    "complex": Kind(
        lambda value: isinstance(value, complex),
        lambda value, _: [value.real, value.imag],
        lambda parts, _: complex(*parts),
        lambda parts, _: repr(complex(*parts)),
    ),
    "device": Kind(
        lambda value: isinstance(value, torch.device),
        lambda value, _: str(value),
        lambda text, _: torch.device(text),
        lambda text, _: f'torch.device("{text}")',
    ),
    **{kind.__name__: _of_torch(kind) for kind in (torch.dtype, torch.layout, torch.memory_format)},
}
PLAIN = Codec()


class GraphCodec(Codec):
    """Values in a graph; ``nodes`` maps names to the nodes so far, or to the variables that hold their results."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        def found(name: Any, _: Any) -> Any:
            if not isinstance(name, str) or name not in nodes:
                raise ArtefactError(f"the graph refers to {name!r:.80}, which no earlier node is called")
            return nodes[name]

        super().__init__({"node": Kind(lambda value: isinstance(value, Node), lambda node, _: node.name, found, found)})


def _meta_tensor(content: Any, codec: Codec) -> torch.Tensor:
    shape, dtype = content
    sizes = shape if isinstance(shape, list) and len(shape) <= _MOST_DIMS else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise ArtefactError(f"the sample has a tensor of shape {shape!r:.80}")
    return torch.empty(shape, dtype=codec.read(dtype), device="meta")


_SAMPLES = Codec(
    {
        "tensor": Kind(
            lambda value: isinstance(value, torch.Tensor),
            lambda tensor, codec: [list(tensor.shape), codec.write(tensor.dtype)],
            _meta_tensor,
            lambda *_: "",
        )
    }
)


def encode_sample(sample: Sample | None) -> Any:
    """Shape and dtype of every tensor, and every other value that can be written; None if there is no sample."""
    if sample is None:
        return None
    kwargs = {key: _SAMPLES.write(value) for key, value in sample.kwargs.items()}
    data = {"args": _SAMPLES.write(list(sample.args)), "kwargs": kwargs}
    return data | ({"others": [encode_sample(other) for other in sample.others]} if sample.others else {})


def decode_sample(data: Any) -> Sample | None:
    """The sample that :func:`encode_sample` wrote, its tensors on the meta device."""
    if data is None:
        return None
    kwargs = {key: _SAMPLES.read(value) for key, value in data["kwargs"].items()}
    others = (decode_sample(other) for other in data.get("others", ()))
    return Sample(
        tuple(map(_SAMPLES.read, data["args"])), kwargs, tuple(other for other in others if other is not None)
    )
