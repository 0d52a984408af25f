"""The recovery that is done where nobody says which."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.recovery.base import Recovery, Work, recovery
from fxprune.recovery.reconstruct import Reconstruct
from fxprune.reporting import RecoveryRow


@recovery("auto")
@dataclass(frozen=True)
class Auto:
    """What keeps most accuracy in the tables of docs/recovery.md: :class:`~fxprune.recovery.Reconstruct`.

    :func:`fxprune.compile` leaves it out where there are no data, or no graph to walk through.
    """

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return "auto"

    @property
    def stands_for(self) -> str:
        """The name of what is done."""
        return self._chosen().name

    def recover(self, work: Work) -> RecoveryRow:
        """Do it."""
        return self._chosen().recover(work)

    def _chosen(self) -> Recovery:
        return Reconstruct()
