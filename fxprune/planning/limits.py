"""How narrow each group may become, and in which steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import BudgetError
from fxprune.groups import Group

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits on the kept width of a group.

    Args:
        round_to: a narrowed group's kept width is a multiple of this.
        min_channels: a narrowed group keeps at least this many units.
        max_ratio: at most this share of a group's units goes; a mapping gives it by the names of groups, and those
            that it does not name may go down to the other limits.
        frozen: groups that keep their width.
        vectors: for groups whose kernels round widths up, the multiple to which; a narrowed group's width is one, or
            narrower than one.

    Raises:
        BudgetError: a value makes no sense.
    """

    round_to: int = 1
    min_channels: int = 1
    max_ratio: float | Mapping[str, float] = 1.0
    frozen: frozenset[Group] = frozenset()
    vectors: Mapping[Group, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BudgetError(f"{name} must be a whole number of at least 1, not {value!r}")
        given = self.max_ratio
        for share in given.values() if isinstance(given, Mapping) else (given,):
            if isinstance(share, (bool, str)) or not 0 <= float(share) <= 1:
                raise BudgetError(f"max_ratio must be a number between 0 and 1, not {share!r}")

    def steps(self, group: Group, protected: int = 0) -> NDArray[np.int64]:
        """How many units are gone after 0, 1, 2, ... steps: ascending from 0. ``protected`` units must stay."""
        if group in self.frozen:
            return np.zeros(1, dtype=np.int64)
        # The small addend: 0.3 * 10 is 2.9999999999999996, and three of ten may go.
        share = self.max_ratio.get(group.name, 1.0) if isinstance(self.max_ratio, Mapping) else self.max_ratio
        most = math.floor(share * group.size + 1e-9)
        fewest = max(self.min_channels, group.size - most, protected, 1)
        lowest = -(-fewest // self.round_to) * self.round_to
        kept = np.arange(lowest, group.size, self.round_to, dtype=np.int64)[::-1]
        vector = self.vectors.get(group, 1)
        kept = kept[(kept % vector == 0) | (kept < vector)]
        return np.concatenate([np.zeros(1, dtype=np.int64), group.size - kept])
