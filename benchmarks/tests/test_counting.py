"""The papers' networks have the published sizes under the papers' counting rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.accounting.counting import EARLY_THOP, FOAD, MACS, THOP, CountingRule, count_flops, count_parameters
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network

# Network, classes, rule, published FLOPs and parameters, both in millions as printed.
PUBLISHED = [
    ("VGG-16", 10, THOP, "313.75", "14.72"),
    ("VGG-16", 100, THOP, "313.8", "14.77"),
    ("VGG-19", 10, THOP, "398.74", "20.04"),
    ("VGG-19", 100, THOP, "398.79", "20.08"),
    ("ResNet-56", 10, THOP, "126.55", "0.85"),
    ("ResNet-56", 10, MACS, "125.49", "0.85"),
    ("ResNet-56", 100, THOP, "126.56", "0.86"),
    ("ResNet-164", 100, THOP, "253.97", "1.73"),
    ("DenseNet-40", 100, THOP, "287.75", None),
    ("ResNet-164", 10, EARLY_THOP, "254.50", None),
    ("DenseNet-40", 10, EARLY_THOP, "290.13", "1.06"),
]


@pytest.mark.parametrize(("name", "classes", "rule", "flops", "parameters"), PUBLISHED)
def test_published_baselines(
    name: str, classes: int, rule: CountingRule | None, flops: str | None, parameters: str | None
) -> None:
    network = paper_network(name, classes)
    if rule is not None and flops is not None:
        counted = count_flops(network, PAPER_NETWORKS[name].shape, rule) / 1e6
        assert f"{counted:.{len(flops.partition('.')[2])}f}" == flops
    if parameters is not None:
        assert f"{count_parameters(network) / 1e6:.2f}" == parameters


def test_exact_counts() -> None:
    vgg = paper_network("VGG-16")
    assert count_parameters(vgg) == 14_724_042
    assert count_flops(vgg, (3, 32, 32), MACS) == 313_201_664
    assert count_flops(vgg, (3, 32, 32), THOP) == 313_201_664 + 2 * 276_480
    assert round(count_flops(vgg, (3, 32, 32), FOAD) / 1e9, 3) == 0.627
    resnet = paper_network("ResNet-56")
    assert count_flops(resnet, (3, 32, 32), THOP) == 125_485_696 + 2 * 532_480


def test_parameters_of_the_published_resnet164() -> None:
    """Its selection layers hold one number for each of its 8,080 selectable inputs, counted there."""
    assert round((count_parameters(paper_network("ResNet-164")) + 8080) / 1e6, 2) == 1.71


def test_resnet50_and_mobilefacenet() -> None:
    with torch.device("meta"):
        resnet = PAPER_NETWORKS["ResNet-50"].build(1000)
    assert count_parameters(resnet) == 25_557_032
    face = paper_network("MobileFaceNet", 128)
    assert round(count_parameters(face) / 1e6, 1) == 1.0
    assert round(count_flops(face, (3, 112, 112), MACS) / 1e6) == 221


@pytest.mark.parametrize("name", ["ResNet-56", "ResNet-164", "DenseNet-40", "MobileFaceNet", "DABNet"])
def test_macs_agree_with_torch(name: str) -> None:
    network, shape = paper_network(name), PAPER_NETWORKS[name].shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    assert counter.get_total_flops() == 2 * count_flops(network, shape, MACS)


@pytest.mark.parametrize("name", ["U-Net", "DABNet"])
def test_segmentation_networks_give_a_map_of_the_images_size(name: str) -> None:
    network = paper_network(name, 5)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)


def test_rules_on_one_layer_each() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    convolution, norm, pool, linear = 4 * 16 * 27, 4 * 16, 4 * 4, 80
    assert count_flops(layers, (3, 4, 4), MACS) == convolution + linear
    assert count_flops(layers, (3, 4, 4), THOP) == convolution + linear + 2 * norm
    expected = 2 * (convolution + linear) + 5 + 2 * norm + norm + 4 * pool
    assert count_flops(layers, (3, 4, 4), FOAD) == expected


def test_transposed_convolutions_count_by_their_input() -> None:
    layer = nn.ConvTranspose2d(6, 4, 2, 2)
    assert count_flops(layer, (6, 5, 5), MACS) == math.prod((5, 5, 6, 4, 2, 2))


def test_unknown_names_and_depths() -> None:
    with pytest.raises(ValueError, match="unknown network"):
        paper_network("AlexNet")
    for name, depth in (("VGG-16", 17), ("ResNet-164", 50), ("DenseNet-40", 41)):
        with pytest.raises(ValueError, match=str(depth)):
            type(paper_network(name))(depth)
