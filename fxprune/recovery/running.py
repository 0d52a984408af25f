"""Recoveries by name, and the one place that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from fxprune.errors import RecoveryError
from fxprune.recovery.base import Recovery, Work, recovery
from fxprune.recovery.fidelity import Reference, errors_of_groups
from fxprune.recovery.matching import Match
from fxprune.recovery.reconstruct import Reconstruct
from fxprune.recovery.walking import evaluating
from fxprune.reporting import FidelityRow, RecoveryRow
from fxprune.util.registry import Named


@recovery("auto")
@dataclass(frozen=True)
class Auto(Named):
    """The most accurate recovery in the tables of docs/recovery.md: :class:`~fxprune.recovery.Reconstruct`, and then
    :class:`~fxprune.recovery.Match`.

    :func:`fxprune.compile` leaves it out if there are no data or no graph to walk through.
    """

    parts: ClassVar[tuple[Recovery, ...]] = (Reconstruct(), Match())

    @property
    def stands_for(self) -> str:
        """The names of its parts."""
        return " and ".join(part.name for part in self.parts)

    def recover(self, work: Work) -> RecoveryRow:
        """Run all parts; :func:`~fxprune.recovery.run_recoveries` runs each singly, and undoes any without gain."""
        return [part.recover(work) for part in self.parts][-1]


class Recovered(NamedTuple):
    """The results of the recoveries."""

    rows: tuple[RecoveryRow, ...]  # one for each recovery
    fidelity: tuple[FidelityRow, ...] = ()  # how close the outputs are, after the cut and after recovery
    errors: Mapping[str, float] = {}  # the error if only one group is cut, by its name


def known_recoveries() -> list[str]:
    """The names that ``recover`` takes, sorted."""
    return recovery.names()


def resolve_recoveries(recover: Any) -> list[Recovery]:
    """The recoveries of the argument ``recover``: None, names or objects. Raises RecoveryError for anything else."""
    if recover is None:
        return []
    if isinstance(recover, str) or not isinstance(recover, Sequence):
        recover = [recover]
    return [_resolved(item) for item in recover]


def run_recoveries(recoveries: Sequence[Recovery], work: Work) -> Recovered:
    """Run recoveries one after the other on ``work.pruned``, which is changed; it keeps its train or eval mode.

    A recovery is undone if it moves the network's outputs away from the original's, on samples that it was not fitted
    to. Without data, nothing is compared.

    Raises:
        RecoveryError: a recovery needs calibration and there is none.
        CalibrationError: the data do not fit the model.
    """
    recoveries = [part for one in recoveries for part in (one.parts if isinstance(one, Auto) else (one,))]
    if work.calibration is None:
        with evaluating(work.pruned):
            return Recovered(tuple(one.recover(work) for one in recoveries))
    work.batches("fidelity")
    yardstick = Reference(work)
    rows, found, errors = list[RecoveryRow](), [yardstick.measure(work.pruned, "cut")], errors_of_groups(work)
    for one in recoveries:
        before = {name: tensor.clone() for name, tensor in work.pruned.state_dict().items()}
        with evaluating(work.pruned):
            row = one.recover(work)
        after = yardstick.measure(work.pruned, "recovered")
        if _is_worse(*(row.error if row.divergence is None else row.divergence for row in (after, found[-1]))):
            work.pruned.load_state_dict(before)
            row = replace(row, changed=(), guards=(*row.guards, _undone(after, found[-1])))
            after = replace(found[-1], network="recovered")
        rows.append(row)
        found.append(after)
    return Recovered(tuple(rows), (found[0], *found[1:][-1:]), errors)


def _undone(after: FidelityRow, before: FidelityRow) -> str:
    if after.divergence is None or before.divergence is None:
        return f"undone, as the outputs would be {after.error:.1%} off, not {before.error:.1%}"
    return f"undone, as the predictions would diverge by {after.divergence:.3g} nats, not {before.divergence:.3g}"


def _is_worse(after: float | None, before: float | None) -> bool:
    # A non-finite error is worse than any finite one.
    return before is not None and after is not None and not after <= before * (1 + 1e-6) + 1e-9


def _resolved(item: Any) -> Recovery:
    if isinstance(item, str):
        return recovery[item]()
    if isinstance(item, type) or not isinstance(item, Recovery):
        raise RecoveryError(
            f"recover takes names ({', '.join(known_recoveries())}) or objects with a `name` and a method "
            f"`recover(work)`, not {item!r}"
        )
    return item
