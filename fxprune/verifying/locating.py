"""Where two networks part: a search that runs only after a proof has failed, to say so in the message."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from .comparing import kept_block, leaves_of
from .probes import Probe
from .running import modes

__all__ = ["first_difference"]

_Fingerprint = tuple[tuple[int, ...], float]


def first_difference(masked: nn.Module, pruned: nn.Module, probe: Probe, dtype: torch.dtype) -> str:
    """The first node at which ``pruned`` leaves ``masked``, whose removed entries are NaN; "" if it cannot be found."""
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


class _FoundError(Exception):
    """Carries the name of the node out of the interpreter."""


class _Recorder(fx.Interpreter):
    """Notes a fingerprint of every node's value."""

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
    """Stops at the first node whose fingerprint is not the one that was noted."""

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
    """The shape, and a weighted sum of magnitudes in which permuted entries do not cancel."""
    flat = value.detach().abs().double().flatten()
    flat = flat[torch.isfinite(flat)]
    weights = 1 + torch.cos(torch.arange(flat.numel(), device=flat.device, dtype=torch.float64))
    return tuple(value.shape), float(flat @ weights)


def _described(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"node {node.name} ({node.op} {target})"
