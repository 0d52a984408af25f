"""The published rows, read from ``published.csv``.

``flops_*`` and ``params_*`` are in millions as printed, or percentages of 100 where only a reduction was published.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accounting.counting import EARLY_THOP, FOAD, MACS, THOP, CountingRule

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
