"""torchvision's networks in training mode: a copy that lost nothing draws and gives what the original does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torchvision import models
from torchvision.models import convnext

import fxprune

CONVNEXT = [convnext.CNBlockConfig(24, 48, 2), convnext.CNBlockConfig(48, None, 2)]

# Each behaves otherwise in training: rows dropped at random, dropout, batch statistics, auxiliary outputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convnext": (lambda: models.ConvNeXt(CONVNEXT, stochastic_depth_prob=0.6, layer_scale=0.5, num_classes=7), 32),
    "swin": (
        lambda: models.SwinTransformer(
            [4, 4], 32, [2, 2], [2, 4], [4, 4], dropout=0.2, attention_dropout=0.2, stochastic_depth_prob=0.5
        ),
        64,
    ),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=7, dropout=0.3), 32),
    "googlenet": (lambda: models.googlenet(weights=None, num_classes=7, aux_logits=True, init_weights=False), 64),
    "fcn": (
        lambda: models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, progress=False, num_classes=3, aux_loss=True
        ),
        32,
    ),
}


def seeded(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(11)
    return [leaf for leaf in pytree.tree_leaves(module(x)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", NETWORKS)
def test_training_as_the_original_does(name: str) -> None:
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    model = build().train()
    pruned = fxprune.compile(model, torch.randn(2, 3, size, size), 0.0, verify=False)
    twin = copy.deepcopy(model)
    x = torch.randn(3, 3, size, size)
    for found, expected in zip(seeded(pruned, x), seeded(twin, x), strict=True):
        assert torch.equal(found, expected)
    for (first, found), (second, expected) in zip(pruned.named_buffers(), twin.named_buffers(), strict=True):
        assert first == second
        assert torch.equal(found, expected), first
