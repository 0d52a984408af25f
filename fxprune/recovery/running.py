"""Recoveries by name, and the one place that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.errors import RecoveryError
from fxprune.recovery.base import Recovery, Work, recovery
from fxprune.recovery.walking import evaluating
from fxprune.reporting import RecoveryRow

__all__ = ["known_recoveries", "resolve_recoveries", "run_recoveries"]


def known_recoveries() -> list[str]:
    """The names that ``recover`` takes, sorted."""
    return recovery.names()


def resolve_recoveries(recover: Any) -> list[Recovery]:
    """What a user passes as ``recover``: None, a name, an object, or a sequence of names and objects.

    Raises:
        RecoveryError: an unknown name, or something that is no recovery.
    """
    if recover is None:
        return []
    if isinstance(recover, str) or not isinstance(recover, Sequence):
        recover = [recover]
    return [_resolved(item) for item in recover]


def run_recoveries(recoveries: Sequence[Recovery], work: Work) -> tuple[RecoveryRow, ...]:
    """Run them one after the other on ``work.pruned``, which is changed; it keeps its train or eval mode.

    Raises:
        RecoveryError: a recovery needs calibration and there is none.
        CalibrationError: the data do not fit the model.
    """
    with evaluating(work.pruned):
        return tuple(one.recover(work) for one in recoveries)


def _resolved(item: Any) -> Recovery:
    if isinstance(item, str):
        return recovery[item]()
    if isinstance(item, type) or not isinstance(item, Recovery):
        raise RecoveryError(
            f"recover takes names ({', '.join(known_recoveries())}) or objects with a `name` and a method "
            f"`recover(work)`, not {item!r}"
        )
    return item
