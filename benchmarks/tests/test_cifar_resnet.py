"""A trained ResNet on real images; skipped where the weights or the images are not there."""

from __future__ import annotations

import pytest
import torch

import fxprune
from benchmarks.cifar import cifar_resnet, load_images, shared_file
from benchmarks.cifar_resnet import check_only_ends_are_pinned, measure
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
