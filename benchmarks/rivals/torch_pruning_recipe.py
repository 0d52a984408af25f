"""torch-pruning (Fang et al. 2023, "DepGraph", arXiv:2301.12900) through the recipe of its documentation.

Magnitude importance of whole groups, the same channel ratio in every layer, the classifier's output left alone; and for
transformers what its examples add: head counts of attention layers, no fused attention, and widths that a forward reads
set right afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Keep = dict[str, tuple[Tensor | None, ...]]

_PER_CHANNEL_BUFFERS = ("running_mean", "running_var")


def prune(model: nn.Module, sample: Any, channel_ratio: float) -> None:
    """Build the dependency graph and prune ``model`` in place, in one step.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    import torch_pruning  # type: ignore[import-not-found, unused-ignore]

    attention = dict(_attention_layers(model))
    for module in attention.values():
        # Fused attention would take its scale from the new width.
        module.fused_attn = False
    heads: dict[nn.Module, int] = {layer: module.num_heads for layer, module in attention.items()}
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        sample,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=channel_ratio,
        ignored_layers=_classifiers(model),
        num_heads=dict(heads),
        round_to=_common_heads(model),
    )
    pruner.step()
    for layer, module in attention.items():
        _repair_attention(module, layer, pruner.num_heads[layer])
    _repair_hidden_width(model)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """The linear layers with as many outputs as there are classes, which must keep them."""
    classes = getattr(model, "num_classes", 1000)
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]


def _attention_layers(model: nn.Module) -> Iterator[tuple[nn.Linear, Any]]:
    for module in model.modules():
        layer = getattr(module, "qkv", None)
        if isinstance(layer, nn.Linear) and isinstance(getattr(module, "num_heads", None), int):
            yield layer, module


def _repair_attention(module: Any, layer: nn.Linear, num_heads: int) -> None:
    module.num_heads = num_heads
    module.head_dim = layer.out_features // (3 * num_heads)
    # A name that newer releases of the same attention layers read.
    if hasattr(module, "attn_dim"):
        module.attn_dim = layer.out_features // 3


def _common_heads(model: nn.Module) -> int | None:
    """Widths are rounded to a multiple of the heads of multi-head attention, which has no head dimension of its own."""
    heads = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    return max(heads, default=None)


def _repair_hidden_width(model: nn.Module) -> None:
    """A vision transformer reads the width of its patch embedding from an attribute."""
    embedding = getattr(model, "conv_proj", None)
    if isinstance(embedding, nn.Conv2d) and hasattr(model, "hidden_dim"):
        setattr(model, "hidden_dim", embedding.out_channels)  # noqa: B010  typed as a tensor or module otherwise


# -- what it kept ----------------------------------------------------------------------------------------------------


def number_entries(model: nn.Module) -> None:
    """Give each parameter's entries their numbers as its gradient: pruning cuts gradients along with parameters.

    The model must be in float64, whose integers are exact up to 2**53.
    """
    for parameter in model.parameters():
        numbers = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.grad = numbers.reshape(parameter.shape).to(parameter)


def kept_entries(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Keep:
    """Kept indices of every dim of the parameters and buffers of a model that was numbered, then pruned.

    Args:
        model: the pruned model.
        shapes: shapes of all parameters and buffers before pruning.
    """
    numbers = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    keep = {name: _kept(numbers[name], shape) for name, shape in shapes.items() if name in numbers}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        weight = keep.get(f"{module}.weight" if module else "weight", (None,))
        keep.setdefault(name, (weight[0],) if leaf in _PER_CHANNEL_BUFFERS else (None,) * len(shape))
    return keep


def _kept(numbers: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    found: list[Tensor] = []
    below = 1
    for dim in reversed(range(len(shape))):
        first = numbers[tuple(slice(None) if d == dim else 0 for d in range(len(shape)))]
        found.append(first.long().flatten() // below % shape[dim])
        below *= shape[dim]
    return tuple(None if len(index) == size else index for index, size in zip(reversed(found), shape, strict=True))
