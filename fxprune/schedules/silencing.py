"""What a plan removes, set to zero in a live network, and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxprune.planning import Plan
from fxprune.verifying.copies import named_tensors
from fxprune.verifying.masking import overwrite_removed
from fxprune.verifying.selecting import removed_entries

__all__ = ["put_back", "silence"]


@torch.no_grad()
def silence(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Set every removed entry to zero, in place: the masked original that the proof compares with.

    Returns:
        By name, the removed entries of every floating tensor as they were, each of shape ``(entries,)``.
    """
    held = {}
    for name, tensor in named_tensors(model).items():
        removed = _removed(tensor, plan, name)
        if removed is not None:
            held[name] = tensor.detach()[removed].clone()
    overwrite_removed(model, plan.keep, 0.0)
    return held


@torch.no_grad()
def put_back(model: nn.Module, plan: Plan, held: Mapping[str, Tensor], filters: Mapping[str, int]) -> None:
    """Give removed entries their values again, in place, but for the rows of ``filters`` (dims by name)."""
    for name, tensor in named_tensors(model).items():
        removed = _removed(tensor, plan, name)
        if removed is None or name not in held:
            continue
        values = torch.zeros_like(tensor).masked_scatter_(removed, held[name].to(tensor))
        for dim, index in removed_entries(tensor, plan.keep.get(name, ())):
            if filters.get(name) == dim:
                removed.index_fill_(dim, index, False)
        tensor.copy_(torch.where(removed, values, tensor))


def _removed(tensor: Tensor, plan: Plan, name: str) -> Tensor | None:
    """Which entries a plan removes of a floating tensor; None where none."""
    entries = list(removed_entries(tensor, plan.keep.get(name, ())))
    if not entries or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    removed = torch.zeros_like(tensor, dtype=torch.bool)
    for dim, index in entries:
        removed.index_fill_(dim, index, True)
    return removed
