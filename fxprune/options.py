"""The options of a compilation that its plan depends on."""

from __future__ import annotations

import glob
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.analysis.uncoupling import check_couplings
from fxprune.calibration import Calibration, Collector, Loss
from fxprune.capture.samples import Sample
from fxprune.cost.budgets import goals_of, known_budgets
from fxprune.criteria import Criterion
from fxprune.errors import OptionError
from fxprune.planning.limits import MAX_RATIO
from fxprune.planning.plan import setting
from fxprune.reporting import versions
from fxprune.util.progress import Steps

__all__ = ["LEVELS", "Feed", "Options", "by_path", "check_level", "kernel_multiple", "setting"]


# What ``verify`` may be: no proof, node by node, or by whole networks at the sample's size.
LEVELS = (False, True, "full")


def check_level(verify: bool | str) -> bool | str:
    """What was asked of the proof.

    Raises:
        OptionError: none of :data:`LEVELS`.
    """
    if not any(verify is level or (isinstance(verify, str) and verify == level) for level in LEVELS):
        raise OptionError(f"verify must be True, False or 'full', not {verify!r}")
    return verify


# What "auto" stands for. With data: what keeps most of a trained network in the tables of docs/recovery.md.
_WITH_DATA = {"criterion": "reconstruction", "scope": "reconstruction", "residual": "inner"}
_WITHOUT_DATA = {"criterion": "magnitude", "scope": "global", "residual": "coupled"}


@dataclass(frozen=True)
class Options:
    """The choices of :func:`fxprune.compile` that a plan depends on; see there.

    ``ratio`` is a fraction of ``budget``, or a mapping from patterns to shares; where there are several budgets,
    ``budgets`` holds all fractions and the first of them stands in ``ratio`` and ``budget``.
    """

    ratio: float | Mapping[str, float]
    budget: str
    criterion: str | Criterion
    exclude: Sequence[str]
    scope: str
    alike: str
    residual: str
    couplings: str
    round_to: int | str | Mapping[str, int]
    min_channels: int | Mapping[str, int]
    max_ratio: float | Mapping[str, float]
    seed: int
    budgets: Mapping[str, float]

    @classmethod
    def checked(cls, model: nn.Module, *given: Any) -> Options:
        """The options, given in order, in the types they are stored in: paths of modules in the place of modules.

        Raises:
            RatioError, BudgetError, OptionError: a value that cannot be meant.
        """
        fields = dict(zip(cls.__dataclass_fields__, given, strict=False))
        for name in ("ratio", "round_to", "min_channels", "max_ratio"):
            fields[name] = by_path(model, name, fields[name])
        ratio, budget, patterns = fields["ratio"], fields["budget"], fields["exclude"]
        if isinstance(ratio, Mapping) and _are_budgets(model, ratio):
            ratio, budget = None, ratio
        goals = {} if isinstance(ratio, Mapping) else goals_of(ratio, budget)
        if goals:
            budget, ratio = next(iter(goals.items()))
        if fields["max_ratio"] is None:
            fields["max_ratio"] = 1.0 if isinstance(ratio, Mapping) else MAX_RATIO
        return cls(
            **fields
            | {
                "ratio": ratio,
                "budget": budget,
                "budgets": goals if len(goals) > 1 else {},
                "exclude": patterns if isinstance(patterns, str) else [_path(model, "exclude", p) for p in patterns],
                "couplings": check_couplings(fields["couplings"]),
                "seed": _whole_number(fields["seed"]),
            }
        )

    @property
    def removes(self) -> bool:
        """Whether anything is asked to go."""
        return isinstance(self.ratio, Mapping) or self.ratio > 0 or any(self.budgets.values())

    @property
    def goals(self) -> dict[str, Any]:
        """``ratio`` and ``budget`` as :func:`fxprune.planning.allocate` takes them."""
        return {"budget": self.budgets} if self.budgets else {"ratio": self.ratio, "budget": self.budget}

    def settled(self, why_not: str) -> tuple[Options, str]:
        """What "auto" stands for, and what was chosen in words; nothing where nothing is left to choose.

        Args:
            why_not: why data cannot help; empty where they can.
        """
        usual = _WITHOUT_DATA if why_not else _WITH_DATA
        # A criterion that the caller chose brings widths of its own.
        usual = usual if self.criterion == "auto" else _WITHOUT_DATA
        chosen = {name: value for name, value in usual.items() if getattr(self, name) == "auto"}
        words = ", ".join(f"{name} {value}" for name, value in chosen.items())
        return replace(self, **chosen), words  # type: ignore[arg-type]

    def settings(self, criterion: Criterion, feed: Feed) -> dict[str, Any]:
        """JSON values that reproduce the plan."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"criterion": repr(criterion), "exclude": list(self.exclude), "versions": versions()}
        values = {n: "of each group" if callable(v) else v for n, v in values.items() if n != "budgets" or v}
        return values | ({"calibration": f"{feed.seen} samples"} if feed.seen else {})


def _are_budgets(model: nn.Module, ratio: Mapping[str, float]) -> bool:
    """Whether the keys are names of budgets, and not of the model's own."""
    return bool(ratio) and ratio.keys() <= set(known_budgets()) and not any(hasattr(model, name) for name in ratio)


def by_path(model: nn.Module, option: str, value: Any) -> Any:
    """A mapping with paths in the place of modules; anything else as it is."""
    return {_path(model, option, key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _path(model: nn.Module, option: str, pattern: Any) -> Any:
    """The pattern, or the path of a module."""
    if not isinstance(pattern, nn.Module):
        return pattern
    path = next((name for name, module in model.named_modules(remove_duplicate=False) if module is pattern), None)
    if path is None:
        raise OptionError(f"{option} names a {type(pattern).__name__} that is no part of the model")
    return glob.escape(path) if path else "*"


def kernel_multiple(model: nn.Module) -> int:
    """The multiple that kernels on the model's device like.

    In half precision on a GPU the tile of its tensor cores (64), else a vector of the processor (8).
    """
    weight = next(model.parameters(), None)
    return 64 if weight is not None and weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16) else 8


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
