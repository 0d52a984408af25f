"""What a criterion is: a scorer (of weights, or of what it observes on calibration data) or a selector."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxprune.criteria.selecting import Selection
from fxprune.groups import Group
from fxprune.statistics import Collector, TapFinder

__all__ = ["Criterion", "FloatArray", "ObservingScorer", "ScoredGraph", "Scorer", "Scores", "Selector", "Study"]

FloatArray = NDArray[np.float64]
Scores = Mapping[Group, FloatArray]


class ScoredGraph(Protocol):
    """What a criterion may ask of the channel graph."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups from which something may be removed."""
        ...

    @property
    def parameter_names(self) -> Collection[str]:
        """The state-dict name of every parameter; buffers are none."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Gives every unit of a group one number; the allocator removes the units with the lowest."""

    @property
    def name(self) -> str:
        """The name it is chosen by, and that the plan records."""
        ...

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ScoredGraph) -> FloatArray | None:
        """Scores of shape ``(group.size,)``, finite, higher = keep; None where it cannot judge the group.

        Args:
            group: the group; its members name the tensor dims that its units cut.
            tensors: every parameter and buffer by its first state-dict name.
            graph: the channel graph the group belongs to.
        """
        ...


@runtime_checkable
class ObservingScorer(Protocol):
    """A scorer that looks at activations or gradients of calibration data."""

    @property
    def name(self) -> str:
        """The name it is chosen by, and that the plan records."""
        ...

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """What to look at: any nesting of lists, tuples and dicts with :class:`~fxprune.statistics.Observation` inside.

        All groups are observed in one pass.
        """
        ...

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ScoredGraph
    ) -> FloatArray | None:
        """As :meth:`Scorer.score`; ``observed`` is what :meth:`observe` gave, with statistics for observations."""
        ...


@runtime_checkable
class Selector(Protocol):
    """Chooses which units stay, with one knob that planning turns until the budget is met."""

    @property
    def name(self) -> str:
        """The name it is chosen by, and that the plan records."""
        ...

    def select(self, study: Study) -> Selection:
        """The settings of the knob, from which planning chooses."""
        ...


Criterion = Scorer | ObservingScorer | Selector


class Study(Protocol):
    """What a selector has to go by."""

    @property
    def graph(self) -> ScoredGraph:
        """The channel graph."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer by its first state-dict name."""
        ...

    def scores(self, criterion: Scorer | ObservingScorer) -> dict[Group, FloatArray]:
        """The scores that another criterion gives every group, after its pass over the calibration data.

        Raises:
            CriterionError, CalibrationError: see :func:`~fxprune.criteria.judging.judge`.
        """
        ...

    def observed(self, criterion: ObservingScorer) -> dict[Group, Any]:
        """What another criterion observes of every group."""
        ...

    def collector(self, name: str) -> Collector:
        """What runs over the calibration data once more, for the criterion of that name.

        Raises:
            CalibrationError: there is no calibration.
        """
        ...
