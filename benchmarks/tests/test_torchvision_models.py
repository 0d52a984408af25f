"""Small versions of torchvision's networks: pruned by half, proven, trained a step, run at other sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import convnext, resnet
from torchvision.models.video import resnet as video

import fxprune
from benchmarks.harness import follows_batch, follows_resolution, train_one_step

IMAGE = (1, 3, 64, 64)
RATIO = 0.5
CLIP = (1, 3, 2, 16, 16)
CONVNEXT = [convnext.CNBlockConfig(24, 48, 1), convnext.CNBlockConfig(48, None, 1)]
STEPS_OF_3D = [video.Conv3DSimple] * 4

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: models.resnet18(num_classes=10), IMAGE),
    "resnext": (lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], 10, groups=8, width_per_group=8), IMAGE),
    "densenet": (lambda: models.DenseNet(8, (2, 3, 2), 16, num_classes=10), IMAGE),
    "mobilenet_v3_large": (lambda: models.mobilenet_v3_large(num_classes=10), IMAGE),
    "shufflenet_v2_x0_5": (lambda: models.shufflenet_v2_x0_5(num_classes=10), IMAGE),
    "squeezenet1_1": (lambda: models.squeezenet1_1(num_classes=10), IMAGE),
    "lraspp_mobilenet_v3_large": (
        lambda: models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4),
        IMAGE,
    ),
    "convnext": (lambda: models.ConvNeXt(CONVNEXT, layer_scale=0.5, num_classes=10), IMAGE),
    "vit": (lambda: models.VisionTransformer(64, 16, 2, 4, hidden_dim=64, mlp_dim=128, num_classes=10), IMAGE),
    "swin": (lambda: models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10), IMAGE),
    "r3d": (lambda: video.VideoResNet(video.BasicBlock, STEPS_OF_3D, [1] * 4, video.BasicStem, 10), CLIP),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_macs_are_removed(name: str) -> None:
    build, shape = NETWORKS[name]
    model, sample = build().eval(), torch.randn(shape)
    pruned = fxprune.compile(model, sample, RATIO, round_to=1)
    report = fxprune.report(pruned)
    assert RATIO <= report.achieved <= RATIO + 0.02
    assert not report.opaque
    assert report.proof is not None
    assert report.proof.relative_error <= report.proof.tolerance
    assert not report.proof.vacuous
    assert report.proof.batch_sizes
    assert follows_batch(model, pruned, sample) == "yes"
    assert follows_resolution(model, pruned, sample) == ("fixed" if name == "vit" else "yes")
    assert train_one_step(pruned, sample) > 0
