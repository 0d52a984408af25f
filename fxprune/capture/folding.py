"""Values that no data enters: tensors made from sizes, literals and constants, for control flow that asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxprune.capture.mutation import is_written, writes_in_place
from fxprune.capture.naming import canonical_name

_CHANGES = frozenset(
    "bernoulli empty empty_like normal rand rand_like randint randint_like randn randn_like randperm".split()
)
_CPU = torch.device("cpu")


class _UnknownError(Exception):
    """Data, chance or a write in place enters."""


def known_value(node: fx.Node, constants: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The real value of a node's tensor on the CPU, or None where it depends on more than shapes."""
    try:
        value = _Evaluator(constants).value(node)
    except _UnknownError:
        return None
    return value if isinstance(value, torch.Tensor) else None


class _Evaluator:
    """Evaluates what a node needs, each node once."""

    def __init__(self, constants: Mapping[str, torch.Tensor]) -> None:
        self._constants = constants
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
        if node.op == "get_attr" and node.target in self._constants:
            return self._constants[str(node.target)].cpu()
        if node.op not in ("call_function", "call_method") or canonical_name(node.target) in _CHANGES:
            raise _UnknownError
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self.value)
        kwargs = {name: _CPU if isinstance(v, torch.device) else v for name, v in kwargs.items()}
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
