"""What ``ratio`` is a fraction of."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.expressions import Term
from fxprune.cost.model import CostModel, budget
from fxprune.errors import BudgetError, RatioError


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
    """The widths of the groups, each once."""
    return CostModel(Term(group.name, 1.0, (group.variable,)) for group in graph.groups)


@budget("latency")
def latency(graph: ChannelGraph) -> CostModel:
    """The seconds of one call, which nobody knows before they are measured."""
    raise BudgetError("the latency of this network's operations has not been measured")


def known_budgets() -> tuple[str, ...]:
    """The names that ``budget`` takes, sorted."""
    return tuple(budget.names())


def budget_model(graph: ChannelGraph, name: str) -> CostModel:
    """The cost that ``ratio`` counts: what was measured of the graph under that name, or what its budget makes of it.

    Raises:
        BudgetError: the name is unknown, or the latency was not measured.
    """
    return graph.measured[name] if name in graph.measured else budget[name](graph)


def goals_of(ratio: float | None, asked: str | Mapping[str, float]) -> dict[str, float]:
    """The fraction of each budget that is to go.

    Raises:
        RatioError: a fraction is none, or there are two for one budget.
        BudgetError: a budget is unknown.
    """
    if isinstance(asked, str):
        return {asked: check_ratio(ratio)}
    if not isinstance(asked, Mapping) or not asked:
        raise BudgetError(f"budget must be a name, or names with a fraction each, not {asked!r:.80}")
    unknown = next((name for name in asked if name not in known_budgets()), None)
    if unknown is not None:
        raise BudgetError(budget.unknown(str(unknown)))
    if ratio is not None:
        raise RatioError(f"leave ratio out where budget names the fractions, {dict(asked)!r:.80}")
    return {name: check_ratio(fraction) for name, fraction in asked.items()}


def check_ratio(ratio: object) -> float:
    """The ratio as a float.

    Raises:
        RatioError: it is not a number with ``0 <= ratio < 1``.
    """
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
        )
    return value
