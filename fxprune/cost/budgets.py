"""Budgets, the costs that ``ratio`` refers to: symbolic polynomials of the group widths.

Every term is a coefficient times a product of axis sizes. Axis sizes are compiled once into sums of products of
*leaves* (the kept size of one variable), and equal sub-expressions are shared. The cost at given widths then takes a
few array operations, whatever the network's depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask, channels_of, is_elementwise, kept_mask, kept_size
from fxprune.axes.expressions import Axis, Channels, Concat, Fixed, Gather, Product, Term, variables
from fxprune.errors import BudgetError, RatioError
from fxprune.util.registry import Registry

Monomial = tuple[float, tuple[int, ...]]
"""A coefficient and the nodes it is multiplied by: leaf ``i`` is written ``i``, sum ``j`` is written ``~j``."""


@dataclass(frozen=True, eq=False)
class WidthLeaf:
    """The kept size of a variable; ``weights``: how often each channel occurs, None if each occurs once."""

    variable: Channels
    weights: FloatArray | None = None

    def expected(self, widths: Mapping[Channels, float]) -> float:
        """The size at that many kept channels, averaged over all choices of them."""
        width = widths.get(self.variable, self.variable.size)
        return float(width) if self.weights is None else float(width) * float(self.weights.mean())

    def exact(self, masks: Mapping[Channels, Mask]) -> float:
        """The size at exactly these kept channels."""
        mask = masks.get(self.variable)
        if self.weights is None:
            return float(self.variable.size if mask is None else np.count_nonzero(mask))
        return float(self.weights.sum() if mask is None else self.weights[mask].sum())


@dataclass(frozen=True, eq=False)
class GatheredLeaf:
    """The kept size of a gather whose elements need channels of several variables, counted element by element."""

    axis: Gather

    def expected(self, widths: Mapping[Channels, float]) -> float:
        """The size at that many kept channels, averaged over all choices of them."""
        return float(kept_size(self.axis, widths))

    def exact(self, masks: Mapping[Channels, Mask]) -> float:
        """The size at exactly these kept channels."""
        return float(np.count_nonzero(kept_mask(self.axis, masks)))


Leaf = WidthLeaf | GatheredLeaf


class CostModel:
    """The sum of ``terms`` as a function of which channels stay.

    Attributes:
        full: the total with every channel kept.
        leaves: the quantities the polynomial is made of, in the order :meth:`evaluate` takes their values.
        vectors: by variable, the multiple to which a kernel rounds its width up, if it does.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        terms = tuple(terms)
        builder = _Builder()
        monomials = [builder.scaled(term.coefficient, term.axes) for term in terms]
        self.leaves: tuple[Leaf, ...] = tuple(builder.leaves)
        self._owners = tuple(term.owner for term in terms)
        self._stages, slots = _stages(builder)
        self._terms = _Block.of(monomials, slots)
        self._slots = 1 + len(builder.leaves) + len(builder.sums)
        self.vectors: dict[Channels, int] = {}
        self.full = self.total({})

    def total(self, widths: Mapping[Channels, float]) -> float:
        """The cost when each variable keeps ``widths`` of its channels (absent: all).

        If a gather holds some channels more often than others, this is the expectation over all choices of that many
        channels; :meth:`exact` takes the choice itself.
        """
        return self.evaluate(np.array([leaf.expected(widths) for leaf in self.leaves], dtype=np.float64))

    def exact(self, masks: Mapping[Channels, Mask]) -> float:
        """The cost when exactly the channels marked in ``masks`` stay (absent: all)."""
        return self.evaluate(self._exact_leaves(masks))

    def marginal(self, variable: Channels, widths: Mapping[Channels, float]) -> float:
        """The saving from one more removed channel of ``variable`` at these widths."""
        fewer = {**widths, variable: widths.get(variable, variable.size) - 1}
        return self.total(widths) - self.total(fewer)

    def by_owner(self, masks: Mapping[Channels, Mask]) -> dict[str, float]:
        """The exact cost of each owner (an op or a tensor), in the order of the terms."""
        shares: dict[str, float] = {}
        values = self._terms.products(self._nodes(self._exact_leaves(masks)))
        for owner, value in zip(self._owners, values.tolist(), strict=True):
            shares[owner] = shares.get(owner, 0.0) + value
        return shares

    def evaluate(self, leaf_values: FloatArray) -> float:
        """The cost at the given sizes of :attr:`leaves`."""
        return float(self._terms.products(self._nodes(leaf_values)).sum())

    def _exact_leaves(self, masks: Mapping[Channels, Mask]) -> FloatArray:
        return np.array([leaf.exact(masks) for leaf in self.leaves], dtype=np.float64)

    def _nodes(self, leaf_values: FloatArray) -> FloatArray:
        nodes = np.ones(self._slots, dtype=np.float64)
        filled = 1 + len(leaf_values)
        nodes[1:filled] = leaf_values
        for stage in self._stages:
            sums = np.add.reduceat(stage.block.products(nodes), stage.starts)
            nodes[filled : filled + len(sums)] = sums
            filled += len(sums)
        return nodes


@dataclass(frozen=True, eq=False)
class _Block:
    """Products as arrays: ``coefficients`` times the nodes in each of ``columns`` (slot 0 holds a one)."""

    coefficients: FloatArray
    columns: tuple[NDArray[np.intp], ...]

    @classmethod
    def of(cls, monomials: Sequence[Monomial], slots: Mapping[int, int]) -> _Block:
        width = max((len(nodes) for _, nodes in monomials), default=0)
        columns = np.zeros((width, len(monomials)), dtype=np.intp)
        for row, (_, nodes) in enumerate(monomials):
            for column, node in enumerate(nodes):
                columns[column, row] = slots[node]
        return cls(np.array([c for c, _ in monomials], dtype=np.float64), tuple(columns))

    def products(self, nodes: FloatArray) -> FloatArray:
        values = self.coefficients
        for column in self.columns:
            values = values * nodes[column]
        return values


@dataclass(frozen=True, eq=False)
class _Stage:
    """Sums over leaves and sums of earlier stages; ``starts`` marks where each sum's products begin."""

    block: _Block
    starts: NDArray[np.intp]


def _stages(builder: _Builder) -> tuple[list[_Stage], dict[int, int]]:
    """The sums by depth, and the slot of every node in the array of values."""
    slots = {leaf: 1 + leaf for leaf in range(len(builder.leaves))}
    by_depth: dict[int, list[int]] = {}
    for number, depth in enumerate(builder.depths):
        by_depth.setdefault(depth, []).append(number)
    ordered = [by_depth[depth] for depth in sorted(by_depth)]
    for number in (n for numbers in ordered for n in numbers):
        slots[~number] = 1 + len(slots)
    stages: list[_Stage] = []
    for numbers in ordered:
        parts = [builder.sums[n] for n in numbers]
        starts = np.cumsum([0, *(len(p) for p in parts[:-1])]).astype(np.intp)
        stages.append(_Stage(_Block.of([m for p in parts for m in p], slots), starts))
    return stages, slots


@dataclass(eq=False)
class _Builder:
    """Turns axes into monomials; equal leaves and equal sums are created once."""

    leaves: list[Leaf] = field(default_factory=list)
    sums: list[tuple[Monomial, ...]] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    _known_leaves: dict[tuple[int, bytes], int] = field(default_factory=dict)
    _known_sums: dict[tuple[Monomial, ...], int] = field(default_factory=dict)

    def scaled(self, coefficient: float, axes: Iterable[Axis]) -> Monomial:
        nodes: list[int] = []
        for axis in axes:
            if isinstance(axis, Fixed):  # most are
                coefficient *= axis.size
                continue
            factor, more = self.monomial(axis)
            coefficient *= factor
            nodes.extend(more)
        return coefficient, tuple(sorted(nodes))

    def monomial(self, axis: Axis) -> Monomial:
        if isinstance(axis, Channels):
            return 1.0, (self._width(axis, None),)
        if isinstance(axis, Fixed):
            return float(axis.size), ()
        if isinstance(axis, Product):
            return self.scaled(1.0, axis.factors)
        if isinstance(axis, Concat):
            return self._sum([self.monomial(part) for part in axis.parts])
        return self._gathered(axis)

    def _sum(self, parts: Iterable[Monomial]) -> Monomial:
        merged: dict[tuple[int, ...], float] = {}
        for coefficient, nodes in parts:
            merged[nodes] = merged.get(nodes, 0.0) + coefficient
        key = tuple((coefficient, nodes) for nodes, coefficient in merged.items())
        if len(key) <= 1:
            return key[0] if key else (0.0, ())
        if key not in self._known_sums:
            self._known_sums[key] = len(self.sums)
            self.sums.append(key)
            self.depths.append(1 + max((self.depths[~n] for _, nodes in key for n in nodes if n < 0), default=0))
        return 1.0, (~self._known_sums[key],)

    def _gathered(self, axis: Gather) -> Monomial:
        if not is_elementwise(axis):
            self.leaves.append(GatheredLeaf(axis))
            return 1.0, (len(self.leaves) - 1,)
        free = np.ones(axis.size, dtype=np.bool_)
        parts: list[Monomial] = []
        for variable in dict.fromkeys(variables(axis)):
            channels = channels_of(axis, variable)
            free &= channels < 0
            parts.append(self._weighted(variable, np.bincount(channels[channels >= 0], minlength=variable.size)))
        return self._sum([*parts, (float(np.count_nonzero(free)), ())])

    def _weighted(self, variable: Channels, counts: NDArray[np.intp]) -> Monomial:
        if bool((counts == counts[0]).all()):
            return float(counts[0]), (self._width(variable, None),)
        return 1.0, (self._width(variable, counts.astype(np.float64)),)

    def _width(self, variable: Channels, weights: FloatArray | None) -> int:
        key = (variable.serial, b"" if weights is None else weights.tobytes())
        if key not in self._known_leaves:
            self._known_leaves[key] = len(self.leaves)
            self.leaves.append(WidthLeaf(variable, weights))
        return self._known_leaves[key]


_WORDS = {"flops": "macs", "ops": "macs", "mac": "macs", "parameters": "params", "size": "params", "time": "latency"}
_WORDS |= {"speed": "latency", "seconds": "latency", "filters": "channels", "width": "channels"}
budget: Registry[CostModel] = Registry("budget", "fxprune.cost", BudgetError, _WORDS)
"""Registers a function from a channel graph to its cost model, under the name by which users ask for it."""


@budget("macs")
def macs(graph: ChannelGraph) -> CostModel:
    """The multiply-accumulates of convolution, linear and matmul."""
    return CostModel(graph.macs)


@budget("params")
def params(graph: ChannelGraph) -> CostModel:
    """The elements of all parameters."""
    return CostModel(graph.params)


@budget("channels")
def channels(graph: ChannelGraph) -> CostModel:
    """The sum of the widths of all groups."""
    return CostModel(Term(group.name, 1.0, (group.variable,)) for group in graph.groups)


@budget("latency")
def latency(graph: ChannelGraph) -> CostModel:
    """The seconds of one call, which must be measured first. Raises BudgetError."""
    raise BudgetError("the latency of this network's operations has not been measured")


def known_budgets() -> tuple[str, ...]:
    """The names that ``budget`` takes, sorted."""
    return tuple(budget.names())


def budget_model(graph: ChannelGraph, name: str) -> CostModel:
    """The cost model of a budget, as measured or as registered. Raises BudgetError: unknown or not measured."""
    if name not in graph.cost_models:
        graph.cost_models[name] = budget[name](graph)
    model: CostModel = graph.cost_models[name]
    return model


def goals_of(ratio: float | None, asked: str | Mapping[str, float]) -> dict[str, float]:
    """The fraction of each budget to remove. Raises RatioError or BudgetError: a fraction or a budget is invalid."""
    if isinstance(asked, str):
        return {asked: check_ratio(ratio)}
    if not isinstance(asked, Mapping) or not asked:
        raise BudgetError(f"budget must be a name, or names with a fraction each, not {asked!r:.80}")
    unknown = next((name for name in asked if name not in known_budgets()), None)
    if unknown is not None:
        raise BudgetError(budget.unknown(str(unknown)))
    if ratio is not None:
        raise RatioError(f"leave ratio out: budget already gives the fractions, {dict(asked)!r:.80}")
    return {name: check_ratio(fraction) for name, fraction in asked.items()}


def check_ratio(ratio: object) -> float:
    """The ratio as a float. Raises RatioError: it is not a number with ``0 <= ratio < 1``."""
    if ratio is None:
        raise RatioError(
            "say how much is to go: ratio (--ratio on the command line), a number with 0 <= ratio < 1, or a mapping "
            "from layers or budgets to such numbers"
        )
    if isinstance(ratio, (bool, str, bytes)):
        raise RatioError(f"ratio must be a number with 0 <= ratio < 1, not {ratio!r}")
    try:
        value = float(ratio)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise RatioError(f"ratio must be a number with 0 <= ratio < 1, not {ratio!r}") from error
    if math.isnan(value) or not 0 <= value < 1:
        raise RatioError(
            f"ratio is the fraction of the budget to remove and must satisfy 0 <= ratio < 1; {ratio!r} does not"
            + (f" ({value:g} % is {value / 100:g})" if 1 < value < 100 else "")
        )
    return value
