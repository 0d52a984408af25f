"""Turns channels that are chosen by hand, or are zero, into masks of groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask, kept_mask, owned_by
from fxprune.axes.expressions import Axis, variables
from fxprune.errors import OptionError, PlanError
from fxprune.planning.plan_text import write_ranges

_ROLES = ("out", "other", "selection", "scale")


def masks_without(graph: ChannelGraph, channels: Mapping[str, Any]) -> dict[Group, Mask]:
    """For every group, a mask of the channels that stay when the given channels and all tied to them are removed.

    Args:
        graph: the channel graph.
        channels: the output channels to remove, by path of a layer (or name of a parameter), as indices or as a boolean
            mask in which True is removed.

    Raises:
        OptionError: a layer does not exist, or does not have these channels.
        PlanError: a channel cannot be removed, or only together with others; or a group would be empty.
    """
    places = [(path, *_place(graph, path), given) for path, given in channels.items()]
    stays = {group.variable: group.without(()) for group in graph.groups}
    wanted: list[tuple[str, Axis, Mask]] = []
    for path, axis, why, given in places:
        goes = np.zeros(axis.size, dtype=np.bool_)
        goes[_indices(path, given, axis.size)] = True
        if goes.any() and not any(v in stays for v in variables(axis)):
            raise PlanError(f"the channels of {path!r} stay: {why or 'none of them can go by itself'}")
        for variable in (v for v in dict.fromkeys(variables(axis)) if v in stays):
            owned, elements = owned_by(axis, variable)
            held = np.bincount(owned[~goes[elements]], minlength=variable.size)
            stays[variable][np.setdiff1d(owned[goes[elements]], np.flatnonzero(held))] = False
        wanted.append((path, axis, goes))
    for path, axis, goes in wanted:
        left = np.flatnonzero(goes & kept_mask(axis, stays))
        if len(left):
            raise PlanError(f"channel {left[0]} of {path!r} cannot go alone: {_companions(axis, int(left[0]))}")
    empty = next((group for group in graph.groups if not stays[group.variable].any()), None)
    if empty is not None:
        raise PlanError(f"nothing would be left of {empty.name!r}: keep at least one of its {empty.size} channels")
    return {group: stays[group.variable] for group in graph.groups}


def masks_without_zeros(
    graph: ChannelGraph, tensors: Mapping[str, torch.Tensor], silent: Mapping[Group, Mask]
) -> dict[Group, Mask]:
    """For every group, a mask without the channels that are zero or only read by zero columns; at least one stays.

    ``silent``: by group, the channels that are zero where they are read. Other groups: zero if made by zeros alone.
    """
    masks = {}
    for group in graph.groups:
        made, read = _not_zero(group, tensors, silent.get(group))
        masks[group] = made & read
        masks[group][0] |= not masks[group].any()
    return masks


def _not_zero(group: Group, tensors: Mapping[str, torch.Tensor], silent: Mask | None) -> tuple[Mask, Mask]:
    read, made = group.keeping(()), group.keeping(())
    for member in group.members:
        values = tensors.get(member.tensor)
        if isinstance(values, torch.nn.Parameter):
            channels, elements = owned_by(member.axis, group.variable)
            present = (values != 0).movedim(member.dim, 0).reshape(values.shape[member.dim], -1).any(1).cpu().numpy()
            (read if member.role == "in" else made)[channels[present[elements]]] = True
    return made if silent is None else ~silent, read | all(m.role != "in" for m in group.members)


def as_lists(graph: ChannelGraph, channels: Mapping[str, Any]) -> dict[str, list[int]]:
    """The channels to remove as indices by path, for the plan's settings."""
    return {path: _indices(path, given, _place(graph, path)[0].size) for path, given in channels.items()}


def _indices(path: str, given: Any, size: int) -> list[int]:
    """The channels as ascending indices. Raises OptionError: neither indices below ``size`` nor a mask of that size."""
    try:
        values = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else list(given))
    except (TypeError, ValueError):  # not a list, or a ragged one
        values = np.asarray(None)
    if values.dtype == np.bool_ and values.shape == (size,):
        return [int(index) for index in np.flatnonzero(values)]
    whole = values.ndim == 1 and (values.dtype.kind in "iu" or not values.size)
    if not whole or (values.size and not 0 <= values.min() <= values.max() < size):
        raise OptionError(
            f"the channels of {path!r} must be indices from 0 to {size - 1}, or a boolean mask of {size} in which True "
            f"goes, not {given!r:.80}"
        )
    return [int(index) for index in np.unique(values)]


def _place(graph: ChannelGraph, path: str) -> tuple[Axis, str]:
    """The axis of a layer's output channels, and the reason if they are pinned."""
    tensors = [first for name, first in graph.first_names.items() if path in (name, name.rpartition(".")[0])]
    if not tensors:
        raise OptionError(f"there is no layer {path!r} with parameters; there are {', '.join(_layers(graph))}, ...")
    members = (m for g in graph.groups for m in g.members if m.tensor in tensors and m.role in _ROLES)
    best = min(members, key=lambda m: (_ROLES.index(m.role), tensors.index(m.tensor)), default=None)
    if best is not None:
        return best.axis, ""
    pinned = {p.dim: p.reason for p in graph.pinned if p.tensor in tensors}
    dim = min(pinned, default=0)
    return graph.tensors[tensors[0]][dim], pinned.get(dim, "")


def _layers(graph: ChannelGraph) -> Iterator[str]:
    yield from list(dict.fromkeys(name.rpartition(".")[0] or name for name in graph.shapes))[:3]


def _companions(axis: Axis, element: int) -> str:
    """In words, the elements of the axis that are removed together with an element."""
    found = []
    for variable in dict.fromkeys(variables(axis)):
        channels, elements = owned_by(axis, variable)
        mine = np.isin(channels, channels[elements == element])
        if mine.any():
            found.append(write_ranges(np.unique(elements[mine])))
    return f"it goes with all of {' or of '.join(found)}" if found else "it belongs to a part that stays"
