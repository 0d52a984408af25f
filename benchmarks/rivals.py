"""torch-pruning's criteria on a CIFAR ResNet, at a given fraction of MACs.

The widths of its residual streams stay, because a cut through the zero-padded shortcuts leaves torch-pruning 1.6.1 with
a network that does not run. The library takes a ratio of channels, so the one that removes the wanted MACs is found by
bisection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar import CifarResNet

CRITERIA = ("magnitude", "fpgm", "taylor", "batch norm scale")
_HALVINGS = 12


def macs(model: nn.Module, sample: Tensor) -> float:
    """Multiply-accumulates of convolution and linear, for one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(sample[:1])
    return counter.get_total_flops() / 2


def pruned(
    model: CifarResNet,
    name: str,
    ratio: float,
    batches: Sequence[tuple[Tensor, Tensor]],
    everywhere: bool = True,
) -> tuple[nn.Module, float]:
    """A copy of the model with at least ``ratio`` of its MACs removed, as little more as can be, and what was removed.

    Args:
        model: the network.
        name: one of ``CRITERIA``.
        ratio: what is to go.
        batches: images and labels, for gradients.
        everywhere: rank all layers together instead of taking the same share of each.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    sample = batches[0][0]
    full = macs(model, sample)
    prepared = _prepared(model, name, batches)
    best: tuple[nn.Module, float] = (model, 0.0)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _cut(prepared, name, middle, sample, everywhere)
        removed = 1 - macs(found, sample) / full
        if removed >= ratio:
            best, high = (found, removed), middle
        else:
            low = middle
    return best


def _prepared(model: CifarResNet, name: str, batches: Sequence[tuple[Tensor, Tensor]]) -> CifarResNet:
    """A copy with the gradients that Taylor importance reads."""
    copied = copy.deepcopy(model)
    if name == "taylor":
        for images, labels in batches:
            (F.cross_entropy(copied(images), labels) / len(batches)).backward()  # type: ignore[no-untyped-call]
    return copied


def _cut(prepared: CifarResNet, name: str, channel_ratio: float, sample: Tensor, everywhere: bool) -> nn.Module:
    import torch_pruning  # type: ignore[import-not-found, unused-ignore]

    copied = copy.deepcopy(prepared)
    for parameter, original in zip(copied.parameters(), prepared.parameters(), strict=True):
        # A deep copy leaves gradients behind.
        parameter.grad = None if original.grad is None else original.grad.clone()
    pruner = torch_pruning.pruner.MetaPruner(
        copied,
        sample[:1],
        importance=_importance(torch_pruning, name),
        global_pruning=everywhere,
        pruning_ratio=channel_ratio,
        max_pruning_ratio=0.999,
        ignored_layers=_streams(copied),
    )
    pruner.step()
    return copied


def _importance(library: Any, name: str) -> Any:
    made: dict[str, Callable[[], Any]] = {
        "magnitude": lambda: library.importance.GroupMagnitudeImportance(p=2),
        "fpgm": lambda: library.importance.FPGMImportance(p=2),
        "taylor": lambda: library.importance.GroupTaylorImportance(),
        "batch norm scale": lambda: library.importance.BNScaleImportance(),
    }
    return made[name]()


def _streams(model: CifarResNet) -> list[nn.Module]:
    """What writes to a residual stream, and the classifier."""
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    return [model.conv1, model.linear, *(block.conv2 for block in blocks)]


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
