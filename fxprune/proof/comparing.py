"""Splits outputs into leaves and compares the leaves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

Leaves = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """The worst difference of two outputs: its relative error, its leaf, and any mismatch of kind (``detail``)."""

    error: float = 0.0
    path: str = "output"
    detail: str = ""

    def describe(self, tolerance: float) -> str:
        """A clause for a message: "output[0] differs by 0.1 (tolerance 1e-09)"."""
        if self.detail:
            return f"{self.path} differs ({self.detail})"
        return f"{self.path} differs by {self.error:.3g} relative (tolerance {tolerance:.0e})"


def leaves_of(output: Any, *, keep_history: bool = False) -> Leaves:
    """All leaves in containers and plain objects, by path; tensors are detached clones unless ``keep_history``."""
    found: Leaves = {}
    _collect(output, "output", found, 16, (lambda t: t) if keep_history else (lambda t: t.detach().clone()))
    return found


def _collect(value: Any, path: str, found: Leaves, depth: int, taken: Callable[[Tensor], Tensor]) -> None:
    if isinstance(value, Tensor):
        found[path] = taken(value)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        found[path] = value
    elif depth == 0:
        found[path] = type(value).__name__
    else:
        for key, item in _parts(value).items():
            _collect(item, path + key, found, depth - 1, taken)


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"[{key!r}]": item for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"[{number}]": item for number, item in enumerate(value)}
    if dataclasses.is_dataclass(value):
        return {f".{field.name}": getattr(value, field.name) for field in dataclasses.fields(value)}
    return {f".{name}": item for name, item in getattr(value, "__dict__", {}).items()}


def compare(reference: Leaves, result: Leaves) -> Difference:
    """The worst difference over all leaves."""
    tensors = {path for path, leaf in reference.items() if isinstance(leaf, Tensor)}
    if tensors != {path for path, leaf in result.items() if isinstance(leaf, Tensor)}:
        names = ", ".join(sorted(tensors.symmetric_difference(p for p, v in result.items() if isinstance(v, Tensor))))
        return Difference(math.inf, names, "only one of the two outputs has this tensor")
    worst = Difference()
    for path, leaf in reference.items():
        found = _leaf_difference(path, leaf, result.get(path))
        if not found.error <= worst.error:
            worst = found
    return worst


def _leaf_difference(path: str, reference: Any, result: Any) -> Difference:
    if isinstance(reference, Tensor) and isinstance(result, Tensor):
        if reference.dtype == result.dtype and reference.device == result.device and torch.equal(reference, result):
            return Difference(0.0, path)
        return _tensor_difference(path, reference, result)
    if isinstance(reference, float) and isinstance(result, float):
        return _tensor_difference(path, torch.tensor(reference).double(), torch.tensor(result).double())
    if reference != result:
        return Difference(math.inf, path, f"{reference!r} became {result!r}")
    return Difference(0.0, path)


def _tensor_difference(path: str, reference: Tensor, result: Tensor) -> Difference:
    if reference.shape != result.shape:
        return Difference(math.inf, path, f"shape {tuple(reference.shape)} became {tuple(result.shape)}")
    if reference.dtype != result.dtype:
        return Difference(math.inf, path, f"type {reference.dtype} became {result.dtype}")
    result = result.to(reference.device)
    if not (reference.is_floating_point() or reference.is_complex()):
        unequal = int((reference != result).sum())
        return Difference(math.inf, path, f"{unequal} integers differ") if unequal else Difference(0.0, path)
    scale, error = magnitude(reference), magnitude(reference - result)
    if math.isfinite(scale) and math.isfinite(error):
        return Difference(error / (scale or 1.0), path)
    finite = torch.isfinite(reference)
    if not bool((finite == torch.isfinite(result)).all()) or not _equal_infinities(reference, result, finite):
        return Difference(math.inf, path, "NaN or infinity at different positions")
    if not bool(finite.any()):
        return Difference(0.0, path)
    scale = float(reference[finite].abs().max()) or 1.0
    return Difference(float((reference[finite] - result[finite]).abs().max()) / scale, path)


def magnitude(tensor: Tensor) -> float:
    """The largest magnitude; NaN if the tensor holds NaN."""
    return float(torch.linalg.vector_norm(tensor, math.inf)) if tensor.numel() else 0.0


def _equal_infinities(reference: Tensor, result: Tensor, finite: Tensor) -> bool:
    left, right = reference[~finite], result[~finite]
    return bool(((left == right) | (torch.isnan(left) & torch.isnan(right))).all())


def is_float(leaf: object) -> TypeGuard[Tensor]:
    """Whether a leaf is a floating-point tensor."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def has_nan(leaves: Leaves) -> bool:
    """Whether any tensor holds NaN."""
    return any(bool(torch.isnan(leaf).any()) for leaf in leaves.values() if isinstance(leaf, Tensor))


def all_finite(leaves: Leaves) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves.values() if isinstance(leaf, Tensor))


def kept_block(leaves: Leaves) -> Leaves:
    """The leaves without slices that are entirely NaN; no network's output matches a NaN that remains."""
    return {path: _kept(leaf) if isinstance(leaf, Tensor) else leaf for path, leaf in leaves.items()}


def _kept(tensor: Tensor) -> Tensor:
    removed = torch.isnan(tensor)
    if tensor.ndim == 0 or not bool(removed.any()):
        return tensor
    for dim in range(tensor.ndim):
        others = tuple(d for d in range(tensor.ndim) if d != dim)
        whole = removed.all(dim=others) if others else removed
        index = (~whole).nonzero().flatten()
        tensor, removed = tensor.index_select(dim, index), removed.index_select(dim, index)
    return tensor
