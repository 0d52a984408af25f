"""A private copy of the network, run node by node with its taps open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from fxprune.analysis import ChannelGraph
from fxprune.capture import Captured
from fxprune.capture.mutation import is_written
from fxprune.copying import deep_copy
from fxprune.errors import CalibrationError
from fxprune.samples import Sample

__all__ = ["PrivateNetwork"]

Watcher = Callable[[Tensor], None]


class _Watch(nn.Module):
    """Shows the value of one node to whoever watches it."""

    def __init__(self, watchers: list[Watcher], written: bool) -> None:
        super().__init__()
        self._watchers = watchers
        self.written = written

    def forward(self, value: Tensor) -> Tensor:
        for watcher in self._watchers:
            watcher(value)
        return value


class PrivateNetwork:
    """The captured network over tensors of its own, in eval mode; nothing it does reaches the caller's model.

    Args:
        graph: the channel graph.
        model: the caller's model, which is only read.
        watched: nodes of the captured graphs, each with the functions that are shown its value.

    Raises:
        CalibrationError: the model cannot be copied.
    """

    def __init__(
        self, graph: ChannelGraph, model: nn.Module, watched: Mapping[fx.Node, list[Watcher]] | None = None
    ) -> None:
        self._watched = watched or {}
        try:
            copied = deep_copy(model, _fresh).eval()
        except Exception as error:  # deepcopy runs the user's own code: anything may come out of it
            raise CalibrationError(
                f"{type(model).__name__} cannot be copied, and statistics are taken on a copy "
                f"({type(error).__name__}: {error})"
            ) from error
        for island in graph.captured.islands:
            path, _, name = island.prefix.removesuffix(".").rpartition(".")
            setattr(copied.get_submodule(path), name, self._opened(island, copied))
        self.module = copied if "" in graph.captured.opaque else self._opened(graph.captured, copied)
        self.parameters: dict[str, Tensor] = dict(copied.named_parameters())
        self.buffers: dict[str, Tensor] = dict(copied.named_buffers())

    def run(self, sample: Sample) -> Any:
        """The output of one call."""
        # The wrapper of a GraphModule prints to the terminal and drops the traceback when its code raises.
        return sample.call(partial(nn.Module.__call__, self.module))

    def _opened(self, captured: Captured, model: nn.Module) -> nn.Module:
        module = captured.module(model).eval()
        assert isinstance(module, fx.GraphModule)
        originals = [node for node in captured.graph.nodes if node.op != "output"]
        for number, (original, node) in enumerate(zip(originals, list(module.graph.nodes), strict=False)):
            if original in self._watched:
                self._watch(module, node, self._watched[original], f"_fxprune_watch{number}")
        module.recompile()
        return module

    def _watch(self, module: fx.GraphModule, node: fx.Node, watchers: list[Watcher], name: str) -> None:
        module.add_module(name, _Watch(watchers, is_written(node) or _in_place_user(module, node.users)))
        with module.graph.inserting_after(node):
            module.graph.call_module(name, (node,))


def _in_place_user(module: fx.GraphModule, users: Iterable[fx.Node]) -> bool:
    paths = (str(user.target) for user in users if user.op == "call_module")
    return any(getattr(module.get_submodule(path), "inplace", False) for path in paths)


def _fresh(tensor: Tensor) -> Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
