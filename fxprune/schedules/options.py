"""The options that schedules hand on to :func:`fxprune.plan`."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import nn

from fxprune.criteria import Criterion
from fxprune.errors import OptionError
from fxprune.groups import Group
from fxprune.statistics import Loss

__all__ = ["PlanOptions", "exclusions", "unwrapped"]


class PlanOptions(TypedDict, total=False):
    """See :func:`fxprune.compile`."""

    budget: str
    criterion: str | Criterion
    calibration: Iterable[Any] | None
    loss: Loss | None
    exclude: Sequence[str | nn.Module]
    scope: str
    alike: str
    residual: str
    couplings: str
    round_to: int | str | Mapping[str | nn.Module, int]
    min_channels: int | Mapping[str | nn.Module, int]
    max_ratio: float | Mapping[str | nn.Module, float] | None
    seed: int


def unwrapped(model: nn.Module) -> nn.Module:
    """The model, unless it is a wrapper around one.

    Raises:
        OptionError: it is wrapped for data parallel training.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise OptionError(f"pass the network itself, model.module, and not the {type(model).__name__} around it")
    if isinstance(model, torch.nn.Module):
        return model
    raise OptionError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def exclusions(groups: Iterable[Group]) -> tuple[str, ...]:
    """Patterns for ``exclude`` that keep these groups whole."""
    return tuple(glob.escape(group.members[0].tensor) for group in groups)
