"""Values that no data enters: tensors made from sizes, literals, constants and buffers, for control flow that asks.

Inputs are data, whatever their type, and so is everything computed from them; parameters change in training; a tensor
that the forward writes to changes from call to call. None of these is ever answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.capture.mutation import is_written, writes_in_place
from fxprune.capture.naming import canonical_name

_CHANGES = frozenset(
    "bernoulli empty empty_like normal rand rand_like randint randint_like randn randn_like randperm".split()
)
Stored = Callable[[str], torch.Tensor | None]
_CPU = torch.device("cpu")


class _UnknownError(Exception):
    """Data, chance or a write in place enters."""


def known_value(node: fx.Node, stored: Stored) -> torch.Tensor | None:
    """The real value of a node's tensor on the CPU, or None where it depends on data.

    ``stored(name)``: the values of a constant or a buffer; None where there are none, or training changes them.
    """
    try:
        value = _Evaluator(stored).value(node)
    except _UnknownError:
        return None
    return value if isinstance(value, torch.Tensor) else None


class _Evaluator:
    """Evaluates what a node needs, each node once."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._known: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node) -> Any:
        if node not in self._known:
            self._known[node] = self._evaluated(node)
        return self._known[node]

    def _evaluated(self, node: fx.Node) -> Any:
        given = node.meta["val"]
        if isinstance(given, (int, float, torch.dtype)):
            return given
        if isinstance(given, torch.device):
            return _CPU
        if writes_in_place(node) or is_written(node):
            raise _UnknownError
        if node.op == "get_attr":
            stored = self._stored(str(node.target))
            if stored is None:
                raise _UnknownError
            return stored.cpu()
        if node.op not in ("call_function", "call_method") or canonical_name(node.target) in _CHANGES:
            raise _UnknownError
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self.value)
        kwargs = {name: _CPU if isinstance(v, torch.device) else v for name, v in kwargs.items()}
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
