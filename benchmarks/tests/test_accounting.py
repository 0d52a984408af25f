"""The papers' networks have the published sizes under the papers' counting rules."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from benchmarks.papers_accounting import HALF_A_POINT, RANGE_COLUMNS, Subject, meet, meet_widths, range_row, settle
from benchmarks.published import (
    EARLY_THOP,
    FOAD,
    MACS,
    THOP,
    CountingRule,
    count_flops,
    count_parameters,
    criterion_for,
    given_widths,
    published_rows,
)
from fxprune.criteria import Magnitude
from fxprune.errors import CriterionError

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


ROWS = {row.name: row for row in published_rows()}


def subject(name: str) -> Subject:
    row = ROWS[name]
    model, images = paper_network(row.network, row.classes), torch.randn(4, *PAPER_NETWORKS[row.network].shape)
    settle(model, images, 0)
    return Subject(model, images, "random", "noise")


def test_rows_are_distinct_and_consistent() -> None:
    assert len(ROWS) == len(published_rows()) >= 39
    for row in ROWS.values():
        assert row.network in PAPER_NETWORKS
        assert row.flops_removed is not None or row.params_removed is not None
        assert all(r is None or 0 < r < 1 for r in (row.flops_removed, row.params_removed))
    entropy = ROWS["Shao 2021 / VGG-16 / CIFAR-10 / E"]
    assert entropy.flops_removed == pytest.approx(1 - 83.96 / 313.75)


@pytest.mark.parametrize(
    "name",
    [
        "Shao 2021 / ResNet-56 / CIFAR-10 / P (2)",
        pytest.param("Shi (FOAD) / MobileFaceNet / faces / FOAD", marks=pytest.mark.deep),
    ],
)
def test_a_reduction_of_flops_is_met(name: str) -> None:
    met = meet(ROWS[name], subject(name), Magnitude())
    assert 0 <= met.misses(ROWS[name]) <= HALF_A_POINT
    assert met.proof_error <= 1e-9


def test_published_rates_remove_the_published_share() -> None:
    """Of FLOPs within half a point; of parameters APBM's to the digit, DCFF's own within 0.1 point."""
    apbm, dcff = ROWS["Qu 2022 (APBM) / VGG-16 / CIFAR-10 / APBM"], ROWS["Lin 2021 (DCFF) / VGG-16 / CIFAR-10 / DCFF"]
    widths = given_widths(dcff)
    assert widths == given_widths(apbm) == (32, 32, 76, 76, 166, 166, 166, *(76,) * 6)
    met = meet_widths(dcff, subject(dcff.name), Magnitude(), widths)
    assert met.params_removed == pytest.approx(apbm.params_removed, abs=2e-4)
    assert met.params_removed == pytest.approx(dcff.params_removed, abs=1e-3)
    assert met.flops_removed == pytest.approx(dcff.flops_removed, abs=HALF_A_POINT)
    assert met.proof_error <= 1e-9
    assert given_widths(ROWS["Shao 2021 / VGG-16 / CIFAR-10 / E"]) is None


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(CriterionError, match="no paper prunes by"):
        criterion_for("guessing", "VGG-16")


def test_parameters_depend_on_where_channels_are_taken() -> None:
    found = range_row(ROWS["Wu 2023 / ResNet-56 / CIFAR-10 / similarity"])
    early, late = (float(str(found[name]).rstrip("%")) for name in RANGE_COLUMNS[1:])
    assert early < 58.3 < late


_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def read(name: str) -> dict[str, dict[str, str]]:
    with (_RESULTS / name).open(newline="", encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_every_row_is_met_and_proven() -> None:
    table = read("papers_accounting.csv")
    assert list(table) == [row.name for row in published_rows()]
    for row in table.values():
        assert row["within half a point"] == "yes"
        assert float(row["proof error"]) <= 1e-9


def test_published_parameters_lie_between_the_extremes() -> None:
    extremes = read("papers_accounting_ranges.csv")
    for row in published_rows():
        if row.flops_removed is not None and row.params_removed is not None:
            low, high = (float(extremes[row.name][f"{end} layers first"].rstrip("%")) for end in ("early", "late"))
            assert low < 100 * row.params_removed < high, row.name
