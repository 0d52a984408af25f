"""Runs criteria, and checks their results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.calibration import Collector, Observation, TapFinder
from fxprune.criteria.base import (
    Criterion,
    ObservingScorer,
    Scorer,
    Selection,
    Selector,
    WeighingScorer,
    criterion,
)
from fxprune.criteria.rows import TensorSums
from fxprune.errors import CalibrationError, CriterionError


def judge(
    criterion: Criterion,
    graph: ChannelGraph,
    tensors: Mapping[str, Tensor],
    collector: Collector | None = None,
    spared: Collection[Group] = (),
) -> dict[Group, FloatArray] | Selection | None:
    """The scores or the selection of a criterion for a network; None if the weights are on the meta device.

    Args:
        criterion: the criterion.
        graph: the channel graph.
        tensors: every parameter and buffer by name.
        collector: runs over the calibration data; None without data.
        spared: groups that lose nothing, whatever their scores: they are not observed.

    Raises:
        CriterionError: scores have the wrong shape or are not finite, or there is no group that it can judge.
        CalibrationError: the criterion needs calibration and there is none, or the data do not fit.
    """
    if any(tensors[m.tensor].is_meta for group in graph.groups for m in group.members if m.tensor in tensors):
        return None
    if isinstance(criterion, Selector):
        return criterion.select(Study(graph, TensorSums(tensors), collector))
    return Study(graph, TensorSums(tensors), collector, spared).scores(criterion)


def score_groups(
    criterion: Scorer | ObservingScorer, graph: ChannelGraph, tensors: Mapping[str, Tensor]
) -> dict[Group, FloatArray] | None:
    """The scores of a criterion that needs no calibration; see :func:`judge`."""
    found = judge(criterion, graph, tensors)
    assert found is None or isinstance(found, dict)
    return found


def observations_of(
    criterion: Scorer | ObservingScorer, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]
) -> Any:
    """The observations that a criterion needs of a group; none if it uses weights alone."""
    return criterion.observe(group, finder, tensors) if isinstance(criterion, ObservingScorer) else ()


def score_one(
    criterion: Scorer | ObservingScorer, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
) -> FloatArray | None:
    """The scores of one group, after its observations."""
    score: Any = getattr(criterion, "score_observed", None)  # to ask the protocol of each group takes longer
    if score is not None:
        scores = score(group, observed, tensors, graph)
    else:
        scores = cast(Scorer, criterion).score(group, tensors, graph)
    return None if scores is None else _checked(criterion, group, scores)


class Study:
    """The information for a selector.

    Attributes:
        graph: the channel graph.
        tensors: every parameter and buffer by its first state-dict name.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        tensors: Mapping[str, Tensor],
        collector: Collector | None,
        spared: Collection[Group] = (),
    ) -> None:
        self.graph = graph
        self._spared = spared
        self.tensors = tensors
        self._collector = collector
        self._finder: TapFinder | None = None

    def scores(self, criterion: Scorer | ObservingScorer) -> dict[Group, FloatArray]:
        """The scores that a criterion gives every group, after its pass over the data. Raises as :func:`judge`."""
        observed = self.observed(criterion) if isinstance(criterion, ObservingScorer) else None
        if isinstance(criterion, WeighingScorer) and observed is not None:
            observed = dict(criterion.refined(observed, self.collector(criterion.name)))
        found = {
            g: score_one(criterion, g, (observed or {}).get(g, ()), self.tensors, self.graph)
            if observed is None or g in observed
            else None
            for g in self.graph.groups
        }
        if isinstance(criterion, WeighingScorer) and observed is not None:
            found = dict(criterion.weighed(found, observed, self.tensors, self.collector(criterion.name)))
        return _filled(criterion.name, found, judged=len(self._spared) < len(found))

    def observed(self, criterion: ObservingScorer) -> dict[Group, Any]:
        """The observations of a criterion for every group."""
        finder = self._taps(criterion).start()
        groups = [group for group in self.graph.groups if group not in self._spared]
        trees = {group: criterion.observe(group, finder, self.tensors) for group in groups}
        leaves = (leaf for tree in trees.values() for leaf in pytree.tree_leaves(tree))
        wanted = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Observation)))
        if wanted:
            self.collector(criterion.name).collect(wanted)
        return {group: pytree.tree_map_only(Observation, lambda o: o.statistic, tree) for group, tree in trees.items()}

    def collector(self, name: str) -> Collector:
        """The collector for another pass over the data; ``name``: the criterion's. Raises CalibrationError: no data."""
        if self._collector is None:
            raise CalibrationError(
                f"criterion {name!r} looks at activations or gradients: pass calibration=, a re-iterable of batches "
                "(what the model takes, or pairs of that and the target), such as a DataLoader or a list"
            )
        return self._collector

    def _taps(self, criterion: ObservingScorer) -> TapFinder:
        graph = self._collector.graph if self._collector is not None else self.graph
        if not isinstance(graph, ChannelGraph):
            raise CriterionError(f"criterion {criterion.name!r} needs the graph of a captured network")
        if self._finder is None:
            self._finder = TapFinder(graph)
        return self._finder


def _filled(name: str, found: Mapping[Group, FloatArray | None], judged: bool) -> dict[Group, FloatArray]:
    """Give groups that the criterion cannot judge the highest score, so that they are cut last."""
    known = [scores.max() for scores in found.values() if scores is not None]
    if judged and not known:
        raise CriterionError(
            f"criterion {name!r} finds nothing to judge by in this network (batch norms for slimming, for example): "
            "choose another criterion"
        )
    return {g: np.full(g.size, max(known, default=1.0)) if scores is None else scores for g, scores in found.items()}


def _checked(criterion: Scorer | ObservingScorer, group: Group, scores: FloatArray) -> FloatArray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (group.size,):
        raise CriterionError(
            f"criterion {criterion.name!r} gave scores of shape {scores.shape} for group {group.name!r}; "
            f"it has {group.size} channels and needs shape ({group.size},)"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise CriterionError(
            f"criterion {criterion.name!r} gave {scores[bad[0]]} for channel {int(bad[0])} of group {group.name!r} "
            f"({len(bad)} of {group.size} scores are not finite); look for NaN or infinite values in "
            f"{', '.join(dict.fromkeys(m.tensor for m in group.members[:3])) or 'its inputs'}"
        )
    return scores


def known_criteria() -> list[str]:
    """The names that :func:`criterion_by_name` accepts, sorted."""
    return criterion.names()


def criterion_by_name(name: str, **options: Any) -> Criterion:
    """Build the criterion of that name with its keyword options.

    Raises:
        CriterionError: the name is unknown, or the criterion does not take these options.
    """
    made = criterion[name]
    try:
        return made(**options)
    except TypeError as error:
        raise CriterionError(f"criterion {name!r} cannot be built with {options}: {error}") from error


def needs_data(criterion: Criterion) -> bool:
    """Whether a criterion, or one of its parts, uses calibration data."""
    return any(isinstance(part, ObservingScorer) for part in (criterion, *vars(criterion).values()))


@functools.lru_cache(maxsize=256)
def _takes_seed(make: Callable[..., Any]) -> bool:
    return "seed" in inspect.signature(make).parameters


def resolve_criterion(given: str | Criterion, *, seed: int = 0) -> Criterion:
    """The criterion that a user passes: by name, or as an object that is a scorer or a selector.

    Args:
        given: the name or the object; an object is returned as it is.
        seed: for named criteria that draw random numbers.

    Raises:
        CriterionError: the name is unknown, or the object is not a criterion.
    """
    if isinstance(given, str):
        return criterion_by_name(given, **({"seed": seed} if _takes_seed(criterion[given]) else {}))
    if isinstance(given, type) or not isinstance(given, (Scorer, ObservingScorer, Selector)):
        raise CriterionError(
            f"criterion must be a name ({', '.join(known_criteria())}) or an object with a `name` and a method "
            f"`score(group, tensors, graph)`, `observe` and `score_observed`, or `select`, not {given!r}"
        )
    return given
