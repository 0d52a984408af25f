"""Removal in values that depend on no parameter: padding, expanded dims, constants of the graph.

No NaN reaches them, so only the plan says which of their slices are removed, as it does for parameters. It is trusted
for values that depend on neither inputs nor parameters, such as a table of positions that the forward computes, and
else only for slices that hold one constant, or that copy a kept slice: a channel with its own content is removed by its
parameters or not at all.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.proof.comparing import kept_block, leaves_of
from fxprune.proof.nan_carrying.calls import gone, with_nan
from fxprune.proof.nan_carrying.contractions import has_copies
from fxprune.proof.probes import Probe
from fxprune.proof.running import modes

_ABOUT = ("size", "dim", "numel", "shape", "dtype", "device", "ndim")

NodeKeep = Mapping[str, tuple[Tensor | None, ...]]


class MarkedRun:
    """Runs a GraphModule node by node and marks the slices that only ``node_keep`` removes.

    ``module``: a private copy whose removed parameter entries are already NaN.
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
        self._tables = tables(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        kept = self._node_keep.get(n.name, ())
        if isinstance(result, Tensor) and _holds_nan(result) and len(kept) == result.ndim:
            # Kept indices of a dim that contains the batch hold for the batch of the trace only.
            sizes = zip(kept, n.meta.get("val", result).shape, result.shape, strict=True)
            kept = tuple(index if traced == size else None for index, traced, size in sizes)
            with _disable_current_modes():
                lost = _lost(result, kept, anything=n in self._tables)
                return result if lost is None else with_nan(result, lost)
        return result


def _holds_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def tables(graph: fx.Graph, held: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that depend on nothing but the sizes, type and device of inputs, and on the nodes ``held``."""
    found = set(held)
    for node in graph.nodes:
        if reads_about(node) or (_computes(node) and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def reads_about(node: fx.Node) -> bool:
    """Whether a node reads a tensor's size, type or device, not its values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _ABOUT
    return node.op == "call_method" and node.target in _ABOUT


def _computes(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method")


def _lost(value: Tensor, kept: tuple[Tensor | None, ...], *, anything: bool) -> Tensor | None:
    """The entries of slices that no parameter removes, as a mask that broadcasts to ``value``; None if none."""
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
    """Whether each missing row is one repeated number, or a copy of a kept row."""
    varied = missing & ~(slices == slices[:, :1]).all(1)
    return not bool(varied.any()) or has_copies(slices, 0, varied)


_Fingerprint = tuple[tuple[int, ...], float]


def first_difference(masked: nn.Module, pruned: nn.Module, probe: Probe, dtype: torch.dtype) -> str:
    """The first node at which ``pruned`` differs from ``masked``, whose removed entries are NaN; "" if not found."""
    if not (isinstance(masked, fx.GraphModule) and isinstance(pruned, fx.GraphModule)):
        return ""
    try:
        recorder = _Recorder(pruned)
        with modes(dtype, carry_nan=False):
            recorder.call(probe, dtype)
        with modes(dtype, carry_nan=True):
            _Checker(masked, recorder.seen).call(probe, dtype)
    except _FoundError as found:
        return str(found)
    except Exception:  # a hint for the message is not worth a second error
        return ""
    return ""


def first_layer(original: nn.Module, traced: nn.Module, call: Callable[[nn.Module], Any]) -> str:
    """Where private copies ``traced`` and ``original`` first differ in ``call``, as the end of a message, or ""."""
    if not isinstance(traced, fx.GraphModule):
        return ""
    lines = {str(n.target): n.meta.get("source", "") for n in traced.graph.nodes if n.op == "call_module"}
    calls: list[list[tuple[str, _Fingerprint]]] = []
    for network in (original, traced):
        answers: list[tuple[str, _Fingerprint]] = []
        parts = {path: part for path, part in network.named_modules() if path in lines}
        hooks = [part.register_forward_hook(partial(_note_answer, answers, path)) for path, part in parts.items()]
        call(network)
        for hook in hooks:
            hook.remove()
        calls.append(answers)
    for (path, mine), other in zip(calls[1], calls[0], strict=False):
        if (path, mine[0]) != (other[0], other[1][0]) or not math.isclose(mine[1], other[1][1], rel_tol=1e-6):
            return f"; the first layer that answers otherwise is {path} (called at {lines[path]})"
    return "; all layers agree: the difference arises after the last of them" if calls[1] else ""


def _note_answer(answers: list[tuple[str, _Fingerprint]], path: str, _: nn.Module, given: Any, answer: Any) -> None:
    if isinstance(answer, Tensor):
        with _disable_current_modes():
            answers.append((path, _fingerprint(answer)))


class _FoundError(Exception):
    """Carries the name of the node out of the interpreter."""


class _Recorder(fx.Interpreter):
    """Records a fingerprint of every node's value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.seen: dict[str, _Fingerprint] = {}

    def call(self, probe: Probe, dtype: torch.dtype) -> None:
        sample = probe.in_dtype(dtype)
        bound = inspect.signature(self.module.forward).bind(*sample.args, **sample.kwargs)
        bound.apply_defaults()
        self.run(*bound.arguments.values())

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.note(n, result)
        return result

    def note(self, node: fx.Node, value: Tensor) -> None:
        self.seen[node.name] = _fingerprint(value)


class _Checker(_Recorder):
    """Stops at the first node whose fingerprint differs from the recorded one."""

    def __init__(self, module: fx.GraphModule, expected: dict[str, _Fingerprint]) -> None:
        super().__init__(module)
        self._expected = expected

    def note(self, node: fx.Node, value: Tensor) -> None:
        if node.name not in self._expected:
            return
        block = kept_block(leaves_of(value))["output"]
        shape, total = _fingerprint(block)
        other_shape, other_total = self._expected[node.name]
        if shape != other_shape:
            raise _FoundError(f"{_described(node)}: kept shape {shape}, pruned shape {other_shape}")
        if not math.isclose(total, other_total, rel_tol=1e-6, abs_tol=1e-9):
            raise _FoundError(f"{_described(node)}: the values differ")


def _fingerprint(value: Tensor) -> _Fingerprint:
    """The shape, and a weighted sum of magnitudes that changes when entries are permuted."""
    flat = value.detach().abs().double().flatten()
    flat = flat[torch.isfinite(flat)]
    weights = 1 + torch.cos(torch.arange(flat.numel(), device=flat.device, dtype=torch.float64))
    return tuple(value.shape), float(flat @ weights)


def _described(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"node {node.name} ({node.op} {target})"
