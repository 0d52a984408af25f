"""A published row is met under its own counting, proven, without a width set by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accounting.meeting import HALF_A_POINT, RANGE_COLUMNS, Subject, meet, meet_widths, range_row, settle
from benchmarks.accounting.rows import criterion_for, given_widths, published_rows
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from fxprune.criteria import Magnitude
from fxprune.errors import CriterionError

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
