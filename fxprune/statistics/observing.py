"""A statistic and where it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.statistics.places import Place
from fxprune.statistics.statistic import Statistic

__all__ = ["Observation"]


@dataclass(frozen=True, eq=False)
class Observation:
    """A statistic and the place it is taken at."""

    place: Place
    statistic: Statistic
