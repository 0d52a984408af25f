"""The network run as it is, operation by operation: what each is called with, and how long it takes in its place."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.latency.kernels import TensorSpec
from fxprune.samples import Sample

__all__ = ["Seen", "profile"]

_ROUNDS = 5


@dataclass
class Seen:
    """One operation in one run.

    Attributes:
        key: the call as text.
        arguments: for every node that it reads, what that held: tensors as specifications.
        result: what it gave, the same way.
        seconds: the least time over the rounds.
    """

    key: str
    arguments: dict[fx.Node, Any]
    result: Any
    seconds: float = float("inf")


def profile(
    module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    sample: Sample,
    known: Callable[[str], bool],
    rounds: Iterable[int] = range(_ROUNDS),
) -> dict[fx.Node, Seen]:
    """What every operation of a graph sees, and its seconds unless all are ``known`` by their keys.

    Args:
        module: a private copy, in eval mode.
        nodes: the nodes to report about: those of the graph that the copy was made of, in the same order.
        sample: one call's arguments.
        known: whether the time of a key needs not be measured.
        rounds: one item for each timed run.
    """
    runner = _Runner(module, dict(zip(module.graph.nodes, nodes, strict=True)))
    with torch.no_grad():
        runner.call(sample)
        if not all(known(seen.key) for seen in runner.seen.values()):
            for _ in rounds:
                runner.call(sample)
    return runner.seen


class _Runner(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, originals: dict[fx.Node, fx.Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.seen: dict[fx.Node, Seen] = {}
        self._originals = originals
        self._elapsed = float("inf")

    def call(self, sample: Sample) -> None:
        sample = sample.map(torch.clone)  # a network may write to its input
        bound = inspect.signature(self.module.forward).bind(*sample.args, **sample.kwargs)
        bound.apply_defaults()
        self.run(*bound.arguments.values())

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_function", "call_method", "call_module"):
            return super().run_node(n)
        original = self._originals[n]
        first = original not in self.seen
        if first:
            arguments = {self._originals[a]: _specified(self.env[a]) for a in n.all_input_nodes}
            key = self._key(n)
        result = super().run_node(n)
        if first:
            # The first run warms up: it is not timed.
            self.seen[original] = Seen(key, arguments, _specified(result))
        else:
            self.seen[original].seconds = min(self.seen[original].seconds, self._elapsed)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_method, target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_module, target, args, kwargs)

    def _timed(self, call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        wait = torch.cuda.synchronize if torch.cuda.is_available() else None
        if wait is not None:
            wait()
        started = time.perf_counter()
        result = call(target, args, kwargs)
        if wait is not None:
            wait()
        self._elapsed = time.perf_counter() - started
        return result

    def _key(self, n: fx.Node) -> str:
        args, kwargs = pytree.tree_map(
            lambda value: str(_specified(self.env[value])) if isinstance(value, fx.Node) else value, (n.args, n.kwargs)
        )
        name = getattr(n.target, "__name__", str(n.target))
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            name = f"{type(module).__name__}({module.extra_repr()})"
        return f"{name}{args}{kwargs or ''}"


def _specified(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: _Laid(tuple(t.shape), t.dtype, tuple(t.stride())), value)


@dataclass(frozen=True, slots=True)
class _Laid(TensorSpec):
    """A specification with strides, on which the time of an element-wise operation depends."""

    strides: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{TensorSpec.__str__(self)}/{','.join(map(str, self.strides))}"
