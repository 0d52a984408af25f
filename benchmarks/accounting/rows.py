"""Each paper's own criterion, as its released code sets it for a network."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accounting.counting import EARLY_THOP, FOAD, MACS, THOP, CountingRule
from fxprune.criteria import FeatureEntropy, criterion_by_name
from fxprune.errors import CriterionError

# What the released scripts of Shao et al. set for a network where it is not the default.
_ENTROPY: dict[str, dict[str, Any]] = {
    "ResNet-56": {"normalize": "variance", "tap": "producer"},
    "ResNet-164": {"transform": "plain", "normalize": "variance", "tap": "producer"},
    "DenseNet-40": {"transform": "plain"},
}
_PARALLEL: dict[str, dict[str, Any]] = {"ResNet-56": {"tap": "producer"}}


def criterion_for(method: str, network: str) -> Any:
    """The criterion object.

    Raises:
        CriterionError: the method is unknown, or its options do not fit.
    """
    makers: dict[str, Callable[[], Any]] = {
        "entropy": lambda: criterion_by_name("feature_entropy", **_ENTROPY.get(network, {})),
        "parallel": lambda: criterion_by_name("parallel", first=FeatureEntropy(**_PARALLEL.get(network, {}))),
        "filter_similarity": lambda: criterion_by_name("filter_similarity"),
        "feature_distance": lambda: criterion_by_name("feature_distance"),
        "information_fusion": lambda: criterion_by_name("information_fusion"),
    }
    if method not in makers:
        raise CriterionError(f"no paper prunes by {method!r}: choose one of {', '.join(makers)}")
    return makers[method]()


_FILE = Path(__file__).with_name("published.csv")
_RULES = {"macs": MACS, "thop": THOP, "early_thop": EARLY_THOP, "foad": FOAD}
_CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100, "ImageNet": 1000, "faces": 128}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's results.

    Attributes:
        paper, network, dataset, method: what it is called.
        criterion: which criterion the paper prunes by.
        residual, couplings: the options of ``fxprune.compile`` that leave the same widths alone as the paper does.
        rule: how the paper counts FLOPs.
        accuracy: as published, in percent; empty where it is not known.
        flops, params: before and after, or None where not published.
    """

    paper: str
    network: str
    dataset: str
    method: str
    criterion: str
    residual: str
    couplings: str
    rule: CountingRule
    accuracy: str
    flops: tuple[float, float] | None
    params: tuple[float, float] | None

    @property
    def name(self) -> str:
        """Unique among the rows."""
        return f"{self.paper} / {self.network} / {self.dataset} / {self.method}"

    @property
    def classes(self) -> int:
        """Classes of the data set, or the size of the embedding."""
        return _CLASSES[self.dataset]

    @property
    def flops_removed(self) -> float | None:
        """The published fraction of FLOPs removed."""
        return _removed(self.flops)

    @property
    def params_removed(self) -> float | None:
        """The published fraction of parameters removed."""
        return _removed(self.params)


def published_rows() -> list[PublishedRow]:
    """Every row, in the order of the file."""
    with _FILE.open(newline="", encoding="utf-8") as file:
        return [_row(cells) for cells in csv.DictReader(file)]


def _row(cells: dict[str, str]) -> PublishedRow:
    pairs = [_pair(cells.pop(f"{what}_before"), cells.pop(f"{what}_after")) for what in ("flops", "params")]
    rule = _RULES[cells.pop("counting")]
    return PublishedRow(rule=rule, flops=pairs[0], params=pairs[1], **cells)


def _pair(before: str, after: str) -> tuple[float, float] | None:
    return (float(before), float(after)) if before else None


def _removed(pair: tuple[float, float] | None) -> float | None:
    return None if pair is None else 1 - pair[1] / pair[0]


VGG16_RATES = (0.5, 0.5, 0.4, 0.4, 0.35, 0.35, 0.35, *(0.85,) * 6)
"""Lin et al. 2021 (arXiv 2107.06916): shares of the filters that go, layer by layer."""

_VGG16_FILTERS = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)


def given_widths(row: PublishedRow) -> tuple[int, ...] | None:
    """The kept widths of a row whose rates are published, rounded down as its code does; None for every other row."""
    if row.criterion != "information_fusion" or (row.network, row.dataset) != ("VGG-16", "CIFAR-10"):
        return None
    return tuple(int(n * (1 - rate)) for n, rate in zip(_VGG16_FILTERS, VGG16_RATES, strict=True))
