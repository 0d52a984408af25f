"""Removal of values that no parameter makes: padding, expanded dims, constants of the graph.

Nothing carries a NaN into them, so which of their slices go is the plan's word alone, as it is for parameters. It is
taken for what depends on neither inputs nor parameters, such as a table of positions that the forward computes, and
else only for slices that hold nothing but one constant or copies of a slice that stays: a channel with a content of its
own is removed by its parameters or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from .nan_carrying.calls import bury, gone
from .nan_carrying.contractions import has_copies

__all__ = ["MarkedRun", "NodeKeep"]

_ABOUT = ("size", "dim", "numel", "shape", "dtype", "device", "ndim")

NodeKeep = Mapping[str, tuple[Tensor | None, ...]]


class MarkedRun:
    """Calls a GraphModule node by node and marks the slices that ``node_keep`` removes and no parameter can.

    Args:
        module: a private copy; its parameters' removed entries are NaN already.
        node_keep: for nodes of its graph by name, one kept-index tensor, or None for all, per dim.
    """

    def __init__(self, module: fx.GraphModule, node_keep: NodeKeep) -> None:
        self._module = module
        self._node_keep = node_keep

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self._module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        interpreter = _Marking(self._module, self._node_keep)
        return interpreter.run(*bound.arguments.values())


class _Marking(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, node_keep: NodeKeep) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._node_keep = node_keep
        self._tables = _tables(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        kept = self._node_keep.get(n.name, ())
        if isinstance(result, Tensor) and _holds_nan(result) and len(kept) == result.ndim:
            with _disable_current_modes():
                lost = _lost(result, kept, anything=n in self._tables)
                return result if lost is None else bury(result, lost)
        return result


def _holds_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tables(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on neither inputs nor parameters, but for the sizes, type and device of inputs."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _reads_about(node) or (_computes(node) and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _reads_about(node: fx.Node) -> bool:
    """Whether a node reads something about a tensor, and not its values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _ABOUT
    return node.op == "call_method" and node.target in _ABOUT


def _computes(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method")


def _lost(value: Tensor, kept: tuple[Tensor | None, ...], *, anything: bool) -> Tensor | None:
    """Which entries go with slices that no parameter removes; broadcasts to ``value``, None where there are none."""
    found: Tensor | None = None
    for dim, index in enumerate(kept):
        if index is None or not value.numel():
            continue
        lost = torch.ones(value.shape[dim], dtype=torch.bool, device=value.device)
        lost[index.to(value.device)] = False
        slices = value.movedim(dim, 0).reshape(value.shape[dim], -1)
        missing = lost & ~gone(slices).any(1)
        if bool(missing.any()) and (anything or _is_free(slices, missing)):
            missing = missing.reshape([-1 if d == dim else 1 for d in range(value.ndim)])
            found = missing if found is None else found | missing
    return found


def _is_free(slices: Tensor, missing: Tensor) -> bool:
    """Whether each missing row is one repeated number, or a copy of a row that stays."""
    varied = missing & ~(slices == slices[:, :1]).all(1)
    return not bool(varied.any()) or has_copies(slices, 0, varied)
