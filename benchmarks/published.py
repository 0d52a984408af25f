"""The papers' published rows, each paper's own criterion, and how the papers count FLOPs and parameters.

Four rules are in use. ``macs``: the multiply-accumulates of convolutions and linear layers, once. ``thop``: the same,
and two for every element that a batch norm gives. ``early_thop``: the same, one for every element of a rectifier and
the window's size for every element that a pool gives; of a module that is called several times the last call counts,
as in that counter's first versions. ``foad``: two for every multiply-accumulate, the biases of linear layers, two for
every element of a batch norm, one for every element of a rectifier, and the window's size for every element that a
pool gives.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.criteria import FeatureEntropy, criterion_by_name
from fxprune.errors import CriterionError

_Conv = (nn.Conv2d, nn.ConvTranspose2d)
_Pool = (nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class CountingRule:
    """What one element of each kind of layer costs.

    Attributes:
        name: as the tables print it.
        mac: one multiply-accumulate.
        norm: one element of a batch norm.
        rectifier: one element of a ReLU or PReLU.
        pool: one element in a window of a pool.
        linear_bias: one bias of a linear layer.
        last_call: whether only the last call of a module counts.
    """

    name: str
    mac: int = 1
    norm: int = 0
    rectifier: int = 0
    pool: int = 0
    linear_bias: int = 0
    last_call: bool = False

    def of(self, module: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> int:
        """The cost of one call of a module on a single sample."""
        if isinstance(module, _Conv):
            positions = taken if isinstance(module, nn.ConvTranspose2d) else given
            return self.mac * math.prod(positions.shape[2:]) * module.weight.numel()
        if isinstance(module, nn.Linear):
            rows = given.numel() // module.out_features
            return rows * (self.mac * module.weight.numel() + self.linear_bias * _size(module.bias))
        if isinstance(module, nn.BatchNorm2d):
            return self.norm * given.numel()
        if isinstance(module, (nn.ReLU, nn.PReLU)):
            return self.rectifier * given.numel()
        return self.pool * given.numel() * _window(module) if isinstance(module, _Pool) else 0


MACS = CountingRule("MACs")
THOP = CountingRule("MACs + 2 per batch-norm element", norm=2)
EARLY_THOP = CountingRule("MACs + 2 per batch-norm element, ReLU, pools", 1, 2, 1, 1, last_call=True)
FOAD = CountingRule("2 per MAC, 2 per batch-norm element, ReLU, pools", 2, 2, 1, 1, 1)


def _size(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _window(pool: nn.Module) -> int:
    size: Any = pool.kernel_size
    return int(size * size if isinstance(size, int) else math.prod(size))


def count_flops(model: nn.Module, shape: tuple[int, ...], rule: CountingRule) -> int:
    """FLOPs of one sample of ``shape`` (without the batch) under a rule; layers called as modules are seen."""
    counts: dict[nn.Module, int] = defaultdict(int)

    def note(module: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
        before = 0 if rule.last_call else counts[module]
        counts[module] = before + rule.of(module, taken[0], given)

    with _hooked(model, note), torch.no_grad():
        model(torch.zeros(1, *shape))
    return sum(counts.values())


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, each tensor once; running statistics are no parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _hooked(model: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
