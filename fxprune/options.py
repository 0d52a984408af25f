"""The options of a compilation that its plan depends on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxprune.criteria import Criterion
from fxprune.errors import OptionError, PlanError
from fxprune.planning import Plan
from fxprune.planning.budgets import check_ratio
from fxprune.reporting import versions
from fxprune.uncoupling import check_couplings

__all__ = ["Options", "setting"]


@dataclass(frozen=True)
class Options:
    """The choices of :func:`fxprune.compile` that a plan depends on; see there."""

    ratio: float
    budget: str
    criterion: str | Criterion
    exclude: Sequence[str]
    scope: str
    residual: str
    couplings: str
    round_to: int
    min_channels: int
    max_ratio: float
    seed: int

    @classmethod
    def checked(cls, *fields: Any) -> Options:
        """The options, given in order, in the types they are stored in.

        Raises:
            RatioError, OptionError: a value that cannot be meant.
        """
        given = cls(*fields)
        patterns = given.exclude if isinstance(given.exclude, str) else tuple(given.exclude)
        return replace(
            given,
            ratio=check_ratio(given.ratio),
            exclude=patterns,
            couplings=check_couplings(given.couplings),
            seed=_whole_number(given.seed),
        )

    def settings(self, criterion: Criterion) -> dict[str, Any]:
        """JSON values that reproduce the plan."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"criterion": repr(criterion), "exclude": list(self.exclude), "versions": versions()}


def _whole_number(seed: Any) -> int:
    try:
        if isinstance(seed, bool):
            raise TypeError
        return operator.index(seed)
    except TypeError:
        raise OptionError(f"seed must be a whole number, not {seed!r}") from None


def setting(plan: Plan, name: str, default: Any) -> Any:
    """A setting of a plan, which may come from a file; of the type of ``default``.

    Raises:
        PlanError: the plan holds a value of another type.
    """
    value = plan.settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
        raise PlanError(f"the plan says {name} = {value!r}, which is no {type(default).__name__}")
    return value
