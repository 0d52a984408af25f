"""Widths given by hand: the per-layer rates that DCFF published for VGG-16, which APBM's figure agrees with."""

from __future__ import annotations

from benchmarks.accounting.rows import PublishedRow

VGG16_RATES = (0.5, 0.5, 0.4, 0.4, 0.35, 0.35, 0.35, *(0.85,) * 6)
"""Lin et al. 2021 (arXiv 2107.06916): shares of the filters that go, layer by layer."""

_VGG16_FILTERS = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)


def given_widths(row: PublishedRow) -> tuple[int, ...] | None:
    """The kept widths of a row whose rates are published, rounded down as its code does; None for every other row."""
    if row.criterion != "information_fusion" or (row.network, row.dataset) != ("VGG-16", "CIFAR-10"):
        return None
    return tuple(int(n * (1 - rate)) for n, rate in zip(_VGG16_FILTERS, VGG16_RATES, strict=True))
