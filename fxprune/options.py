"""The options of a compilation that its plan depends on."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fxprune.analysis import ChannelGraph
from fxprune.criteria import Criterion
from fxprune.errors import OptionError, PlanError
from fxprune.planning import Plan
from fxprune.planning.budgets import check_ratio
from fxprune.progress import Steps
from fxprune.reporting import versions
from fxprune.samples import Sample
from fxprune.statistics import Calibration, Collector, Loss
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
    max_ratio: float | Mapping[str, float]
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
            max_ratio=dict(given.max_ratio) if isinstance(given.max_ratio, Mapping) else given.max_ratio,
            seed=_whole_number(given.seed),
        )

    def settings(self, criterion: Criterion, feed: Feed) -> dict[str, Any]:
        """JSON values that reproduce the plan."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"criterion": repr(criterion), "exclude": list(self.exclude), "versions": versions()}
        return values | ({"calibration": f"{feed.seen} samples"} if feed.seen else {})


@dataclass(frozen=True)
class Feed:
    """What criteria may look at besides weights.

    Attributes:
        calibration: the data; None where there are none.
        loss: whose gradients are read; None for the default.
    """

    calibration: Calibration | None = None
    loss: Loss | None = None

    @classmethod
    def checked(cls, calibration: Iterable[Any] | None, loss: Loss | None, sample: Sample) -> Feed:
        """What a user passes as ``calibration`` and ``loss``.

        Raises:
            CalibrationError: the data are no iterable of batches.
            OptionError: the loss is no function.
        """
        if loss is not None and not callable(loss):
            raise OptionError(f"loss must be a function of the output and the target, not {loss!r}")
        return cls(None if calibration is None else Calibration(calibration, sample), loss)

    @property
    def seen(self) -> int:
        """How many samples the last pass has seen, on all ranks together."""
        return 0 if self.calibration is None else self.calibration.seen

    def collector(self, graph: ChannelGraph, model: nn.Module, steps: Steps, seed: int) -> Collector | None:
        """What runs over the data; None where there are none."""
        if self.calibration is None:
            return None
        return Collector(graph, model, self.calibration, self.loss, steps, seed)


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
