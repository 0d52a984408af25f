"""A private copy of the network, run node by node with its taps open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from fxprune.analysis import ChannelGraph
from fxprune.capture import Captured
from fxprune.copying import deep_copy
from fxprune.errors import CalibrationError
from fxprune.samples import Sample

__all__ = ["PrivateNetwork"]

Watcher = Callable[[Tensor], None]
Watched = tuple[fx.Node, fx.Node | None]
"""A node, or one user's reading of it."""


class _Watch(nn.Module):
    """Shows the value of one node, or one user's reading of it, to whoever watches."""

    def __init__(self, watchers: list[Watcher], apart: bool) -> None:
        super().__init__()
        self._watchers = watchers
        self._apart = apart

    def forward(self, value: Tensor) -> Tensor:
        # A view has the gradient of this reading alone.
        seen = value.view_as(value) if self._apart else value
        for watcher in self._watchers:
            watcher(seen)
        return seen


class PrivateNetwork:
    """The captured network over tensors of its own, in eval mode; nothing it does reaches the caller's model.

    Args:
        graph: the channel graph.
        model: the caller's model, which is only read.
        watched: nodes of the captured graphs, or a user's reading of one, with the functions that are shown the value.

    Raises:
        CalibrationError: the model cannot be copied.
    """

    def __init__(
        self, graph: ChannelGraph, model: nn.Module, watched: Mapping[Watched, list[Watcher]] | None = None
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
        copies = dict(zip(originals, list(module.graph.nodes), strict=False))
        for number, ((node, reader), watchers) in enumerate(self._watched.items()):
            if node in copies:
                self._watch(module, copies[node], copies[reader] if reader else None, watchers, number)
        module.recompile()
        return module

    def _watch(
        self, module: fx.GraphModule, node: fx.Node, reader: fx.Node | None, watchers: list[Watcher], number: int
    ) -> None:
        name = f"_fxprune_watch{number}"
        module.add_module(name, _Watch(watchers, apart=reader is not None))
        after = node if reader is None else reader.prev
        with module.graph.inserting_after(after):
            watch = module.graph.call_module(name, (node,))
        if reader is not None:
            reader.replace_input_with(node, watch)


def _fresh(tensor: Tensor) -> Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
