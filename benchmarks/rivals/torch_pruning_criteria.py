"""torch-pruning's criteria on a CIFAR ResNet, at a given fraction of MACs.

The widths of its residual streams stay, because a cut through the zero-padded shortcuts leaves torch-pruning 1.6.1 with
a network that does not run. The library takes a ratio of channels, so the one that removes the wanted MACs is found by
bisection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar.resnet import CifarResNet

__all__ = ["CRITERIA", "macs", "pruned"]

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
