"""The recovery that is done where nobody says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.recovery.base import Recovery, Work, recovery
from fxprune.recovery.matching import Match
from fxprune.recovery.reconstruct import Reconstruct
from fxprune.reporting import RecoveryRow


@recovery("auto")
@dataclass(frozen=True)
class Auto:
    """What keeps most accuracy in the tables of docs/recovery.md: :class:`~fxprune.recovery.Reconstruct`, and then
    :class:`~fxprune.recovery.Match`.

    :func:`fxprune.compile` leaves it out where there are no data, or no graph to walk through.
    """

    parts: ClassVar[tuple[Recovery, ...]] = (Reconstruct(), Match())

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "auto"

    @property
    def stands_for(self) -> str:
        """The names of what is done."""
        return " and ".join(part.name for part in self.parts)

    def recover(self, work: Work) -> RecoveryRow:
        """Do it; :func:`~fxprune.recovery.run_recoveries` does each part by itself, and undoes one that is no gain."""
        return [part.recover(work) for part in self.parts][-1]
