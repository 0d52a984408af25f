"""Networks for images and video, pruned by half and run at other sizes; a trained one, where its files are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import convnext, resnet
from torchvision.models.video import resnet as video

import fxprune
from benchmarks.cifar import cifar_resnet, load_images, shared_file
from benchmarks.cifar_resnet import check_only_ends_are_pinned, measure
from benchmarks.harness import follows_batch, follows_resolution, train_one_step
from benchmarks.networks.papers import MobileFaceNet
from fxprune.cli.sources import load_weights

WEIGHTS = shared_file("weights", "cifar_resnet20.safetensors")
IMAGES = shared_file("data", "cifar10.zip")
TOLERANCE = 1e-9


def test_option_a_shortcuts_pin_nothing() -> None:
    model = cifar_resnet(14).eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 32, 32), 0.5, scope="uniform")
    report = fxprune.report(pruned)
    check_only_ends_are_pinned(report)
    assert pruned.get_parameter("conv1.weight").shape[0] < 16
    assert pruned.get_parameter("layer2.0.conv2.weight").shape[0] < 32
    assert pruned.get_parameter("layer3.0.conv2.weight").shape[0] < 64
    assert report.proof is not None
    assert report.proof.relative_error <= TOLERANCE


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no trained weights at {WEIGHTS.name}: set FXPRUNE_SHARED")
@pytest.mark.skipif(not IMAGES.is_file(), reason=f"no images at {IMAGES.name}: set FXPRUNE_SHARED")
def test_trained_resnet20_on_test_images() -> None:
    model = cifar_resnet(20)
    load_weights(model, WEIGHTS)
    images, labels = load_images(IMAGES, "test", 200)
    light, middle, heavy = measure(model, images, labels, (0.3, 0.5, 0.7))
    # 87.65 % on all 10,000 images.
    assert light.accuracy_before > 0.8
    # Without any training afterwards; far above the 0.1 of guessing.
    assert light.accuracy_after > 0.3
    for found in (light, middle, heavy):
        assert found.asked <= found.macs_removed <= found.asked + 0.005
        assert found.proof.relative_error <= TOLERANCE
        assert not found.proof.vacuous
    assert sum(light.streams) > sum(heavy.streams)


def cut_outputs(model: nn.Module, shape: tuple[int, ...], ratio: float) -> set[str]:
    """The modules that lost output channels."""
    plan = fxprune.plan(model.eval(), torch.randn(1, *shape), ratio, residual="inner", scope="uniform")
    return {name.removesuffix(".weight") for name, dims in plan.keep.items() if len(dims) == 4 and dims[0] is not None}


def test_option_a_shortcuts() -> None:
    cut = cut_outputs(cifar_resnet(20), (3, 32, 32), 0.4)
    assert cut == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}


def test_bottlenecks_with_projections() -> None:
    model = resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=10)
    blocks = {f"layer{stage}.{block}" for stage, count in ((1, 1), (2, 2), (3, 1), (4, 1)) for block in range(count)}
    # The stem's output runs into convolutions alone: nothing adds to it.
    expected = {f"{block}.{conv}" for block in blocks for conv in ("conv1", "conv2")} | {"conv1"}
    assert cut_outputs(model, (3, 64, 64), 0.4) == expected


def test_inverted_bottlenecks() -> None:
    model = MobileFaceNet()
    cut = cut_outputs(model, (3, 112, 112), 0.3)
    projections = {name for name, m in model.named_modules() if name.endswith("body.2.0") and isinstance(m, nn.Conv2d)}
    expansions = {name.replace("body.2.0", "body.0.0") for name in projections}
    assert expansions <= cut
    joined = {f"features.{i}.body.2.0" for i in (2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16)}
    assert not cut & (joined - {"features.2.body.2.0"})


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_the_result_is_proven_at_the_ratio(ratio: float) -> None:
    pruned = fxprune.compile(cifar_resnet(8).eval(), torch.randn(1, 3, 32, 32), ratio, residual="inner", round_to=1)
    report = fxprune.report(pruned)
    assert ratio <= report.achieved <= ratio + 0.02
    assert report.proof is not None


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
