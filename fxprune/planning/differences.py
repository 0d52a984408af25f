"""Two plans told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.errors import PlanError
from fxprune.planning.plan import Plan
from fxprune.planning.plan_text import write_ranges

_ABSENT = "absent"


@dataclass(frozen=True)
class GroupDifference:
    """A channel group of which the two plans keep other channels.

    Attributes:
        name: the group's name.
        kept: the numbers of channels kept by the first plan and by the second.
        only_first: channels that the first plan keeps alone, as ranges such as ``"0-3,7"``.
        only_second: the same of the second plan.
    """

    name: str
    kept: tuple[int, int]
    only_first: str
    only_second: str


@dataclass(frozen=True)
class PlanDifference:
    """What two plans disagree about; false where they are equal.

    Attributes:
        groups: the groups of which other channels stay, in the first plan's order.
        settings: the values of each setting that differs, the first plan's first; "absent" where a plan has none.
        networks: shapes of tensors that differ, where the plans are for different networks.
        equal_groups: how many groups keep the same channels.
    """

    groups: tuple[GroupDifference, ...]
    settings: Mapping[str, tuple[Any, Any]]
    networks: Mapping[str, tuple[Any, Any]]
    equal_groups: int

    def __bool__(self) -> bool:
        return bool(self.groups or self.settings or self.networks)

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {"equal": not self, **asdict(self)}


def difference(first: Plan, second: Plan) -> PlanDifference:
    """What two plans disagree about."""
    shared = [name for name in first.groups if name in second.groups]
    changed = [name for name in shared if first.groups[name] != second.groups[name]]
    groups = [_group_difference(name, first.groups[name], second.groups[name]) for name in changed]
    networks = _differing(first.shapes, second.shapes)
    # Another network has other groups, or the same ones under other names; neither plan keeps anything of the other's.
    networks |= {f"group {name}": value for name, value in _differing_names(first.groups, second.groups).items()}
    return PlanDifference(
        tuple(groups), _differing(first.settings, second.settings), networks, len(shared) - len(changed)
    )


def read_plan(place: Path) -> Plan:
    """The plan in a file, or in the folder of a saved network.

    Raises:
        PlanError: there is none.
    """
    file = place / "plan.json" if place.is_dir() else place
    if not file.is_file():
        raise PlanError(f"there is no plan at {place}: give a plan.json, or the folder of a saved network")
    return Plan.load(file)


def _group_difference(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> GroupDifference:
    return GroupDifference(name, (len(first), len(second)), _only(first, second), _only(second, first))


def _only(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    channels = np.setdiff1d(np.asarray(one, dtype=np.int64), np.asarray(other, dtype=np.int64))
    return write_ranges(channels) if len(channels) else ""


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*first, *(name for name in second if name not in first)]
    pairs = {name: (first.get(name, _ABSENT), second.get(name, _ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _differing_names(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    present = [dict.fromkeys(names, "present") for names in (first, second)]
    return _differing(*present)
