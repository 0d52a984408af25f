"""torch-pruning on the convolutions inside residual blocks, which is what it can prune of an option-A ResNet."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(model: nn.Module, sample: torch.Tensor) -> float:
    """Of one call, counted by torch."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(sample)
    return counter.get_total_flops() / 2


def pruned_inside(
    model: nn.Module, sample: torch.Tensor, ratio: float, importance: str = "magnitude", everywhere: bool = False
) -> nn.Module:
    """A copy with at least ``ratio`` of the multiply-accumulates removed, as little more as its steps allow.

    Args:
        model: a CIFAR ResNet.
        sample: its input.
        ratio: what is to go.
        importance: "magnitude" or "fpgm".
        everywhere: rank all layers together instead of taking the same share of each.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    full = multiply_accumulates(model, sample)
    low, high = 0.0, 0.95
    best = model
    for _ in range(10):
        middle = (low + high) / 2
        found = _cut(model, sample, middle, importance, everywhere)
        if multiply_accumulates(found, sample) <= (1 - ratio) * full:
            best, high = found, middle
        else:
            low = middle
    return best


def _cut(model: nn.Module, sample: torch.Tensor, share: float, importance: str, everywhere: bool) -> nn.Module:
    import torch_pruning  # type: ignore[import-not-found, unused-ignore]

    twin = copy.deepcopy(model)
    kinds = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "fpgm": torch_pruning.importance.FPGMImportance,
    }
    inner = {f"{name}.conv1" for name, module in twin.named_modules() if hasattr(module, "conv2")}
    whole = [m for n, m in twin.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n not in inner]
    pruner = torch_pruning.pruner.MetaPruner(
        twin,
        sample,
        importance=kinds[importance](p=2),
        pruning_ratio=share,
        global_pruning=everywhere,
        ignored_layers=whole,
    )
    pruner.step()
    return twin


@torch.no_grad()
def recalibrate(model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    """A copy whose batch norms hold the mean statistics of the batches, as measured in training mode."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for batch in batches:
        twin(batch)
    return twin.eval()
