"""What ``ratio`` is a fraction of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, cast

from fxprune.analysis.groups import Group, PinnedWidth
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.expressions import Axis, Term
from fxprune.cost.memory import memory_model
from fxprune.cost.model import CostModel
from fxprune.errors import BudgetError, RatioError

__all__ = ["BUDGETS", "PlannedGraph", "budget_model", "check_ratio", "goals_of"]

BUDGETS = ("macs", "params", "channels", "memory", "latency")


class PlannedGraph(Protocol):
    """What planning asks of the channel graph."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups from which something may be removed, in a stable order."""
        ...

    @property
    def pinned(self) -> tuple[PinnedWidth, ...]:
        """The widths that stay, with their reasons."""
        ...

    @property
    def macs(self) -> tuple[Term, ...]:
        """Multiply-accumulates, one term per op, resolved axes."""
        ...

    @property
    def params(self) -> tuple[Term, ...]:
        """Elements of each parameter; the owner is the parameter's name."""
        ...

    @property
    def latency(self) -> CostModel | None:
        """The seconds of one call, where they were measured."""
        ...

    @property
    def tensors(self) -> Mapping[str, tuple[Axis, ...]]:
        """The resolved axis of every dim of every parameter and buffer."""
        ...

    @property
    def activations(self) -> tuple[Axis, ...]:
        """Axes of activations that might lose all elements while every group keeps some."""
        ...

    @property
    def pairs(self) -> tuple[Axis, ...]:
        """Axes that must keep two elements."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The original shape of every parameter and buffer."""
        ...


def budget_model(graph: PlannedGraph, budget: str) -> CostModel:
    """The cost that ``ratio`` counts.

    "macs", "params", "channels" (the widths of the groups, each once), "memory" (the bytes of all parameters and of the
    activations that are alive at the worst moment, for the sample), or "latency" (seconds of one call).

    Raises:
        BudgetError: the name is unknown, or the latency was not measured.
    """
    if budget == "macs":
        return CostModel(graph.macs)
    if budget == "params":
        return CostModel(graph.params)
    if budget == "channels":
        return CostModel(Term(group.name, 1.0, (group.variable,)) for group in graph.groups)
    if budget == "memory":
        return memory_model(cast(ChannelGraph, graph))
    if budget == "latency":
        if graph.latency is None:
            raise BudgetError("the latency of this network's operations has not been measured")
        return graph.latency
    raise BudgetError(f"unknown budget {budget!r}; choose one of {', '.join(BUDGETS)}")


def goals_of(ratio: float | None, budget: str | Mapping[str, float]) -> dict[str, float]:
    """The fraction of each budget that is to go.

    Raises:
        RatioError: a fraction is none, or there are two for one budget.
        BudgetError: a budget is unknown.
    """
    if isinstance(budget, str):
        return {budget: check_ratio(ratio)}
    unknown = next((name for name in budget if name not in BUDGETS), None)
    if unknown is not None or not budget:
        raise BudgetError(f"unknown budget {unknown!r}; choose from {', '.join(BUDGETS)}")
    if ratio is not None:
        raise RatioError(f"leave ratio out where budget names the fractions, {dict(budget)!r:.80}")
    return {name: check_ratio(fraction) for name, fraction in budget.items()}


def check_ratio(ratio: object) -> float:
    """The ratio as a float.

    Raises:
        RatioError: it is not a number with ``0 <= ratio < 1``.
    """
    if isinstance(ratio, (bool, str, bytes)):
        raise RatioError(f"ratio must be a number with 0 <= ratio < 1, not {ratio!r}")
    try:
        value = float(ratio)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise RatioError(f"ratio must be a number with 0 <= ratio < 1, not {ratio!r}") from error
    if math.isnan(value) or not 0 <= value < 1:
        raise RatioError(
            f"ratio is the fraction of the budget to remove and must satisfy 0 <= ratio < 1; {ratio!r} does not"
        )
    return value
