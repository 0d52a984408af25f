"""Combines two successive plans into one for the original, carries optimisers over, and compares plans."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask, channels_of
from fxprune.errors import OptionError, PlanError
from fxprune.planning.plan import Keep, Plan, same_indices
from fxprune.planning.plan_text import kept_shapes, write_ranges


def composed(graph: ChannelGraph, first: Plan, second: Plan, settings: Mapping[str, Any]) -> Plan:
    """One plan for the original that equals two plans in succession: kept indices of kept indices.

    Raises PlanError: ``second`` was not made for the result of ``first``, or cuts parts of the original's channels.
    """
    shapes = kept_shapes(first)
    for name in graph.shapes:
        if name in second.shapes and second.shapes[name] != shapes[name]:
            raise PlanError(
                f"the second plan is not for what the first leaves: {name!r} has shape {second.shapes[name]} there and "
                f"{shapes[name]} here"
            )
    keep = {name: _chained(first.keep[name], second.keep[name]) for name in graph.shapes if name in second.shapes}
    plan = Plan.from_masks(graph, {group: _mask(group, keep) for group in graph.groups}, settings)
    for name, expected in keep.items():
        if not same_indices(expected, plan.keep[name]):
            raise PlanError(f"what the second plan cuts of {name!r} is no union of the original's channels")
    return plan


def _chained(first: Keep, second: Keep) -> Keep:
    return tuple(b if a is None else a if b is None else a[b] for a, b in zip(first, second, strict=True))


def _mask(group: Group, keep: Mapping[str, Keep]) -> Mask:
    """The channels that keep at least one element."""
    mask = group.keeping(())
    for member in group.members:
        if member.tensor not in keep:
            continue
        channels, index = channels_of(member.axis, group.variable), keep[member.tensor][member.dim]
        kept = channels if index is None else channels[index.numpy()]
        mask[kept[kept >= 0]] = True
    return mask


Kind = TypeVar("Kind", bound=Optimizer)


def migrate(optimizer: Kind, plan: Plan, model: nn.Module, pruned: nn.Module) -> Kind:
    """An optimiser of the same class and settings for a pruned network, with the state of the kept entries.

    State of a parameter's shape (momentum, both moments of Adam) is cut as the parameter was; dims of size 1 (the
    factors of Adafactor) and numbers (step counts) are copied. The next step equals that of the original with all
    removed entries set to zero. Parameters that the pruned network does not hold, as the forward does not use them, are
    left out. Gradients are not carried over. A learning rate schedule holds its optimiser: create a new one with
    ``last_epoch``, or set its ``optimizer``.

    Args:
        optimizer: the optimiser of ``model``'s parameters; it is not changed. Other parameters in it stay as they are.
        plan: the plan of the cut, ``fxprune.report(pruned).plan``.
        model: the original.
        pruned: the network cut from it.

    Raises:
        OptionError: ``optimizer`` is no optimiser, or a network is none.
        PlanError: the plan is for another network, or the optimiser has state that the plan cannot cut.
    """
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise OptionError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if not isinstance(plan, Plan):
        raise PlanError(f"plan must be the plan of the cut, fxprune.report(pruned).plan, not {type(plan).__name__}")
    for role, network in {"model": model, "pruned": pruned}.items():
        if not isinstance(network, nn.Module):
            raise OptionError(f"{role} must be a torch.nn.Module, not {type(network).__name__}")
    names = {parameter: name for name, parameter in model.named_parameters()}
    plan.check({**plan.shapes, **{name: tuple(parameter.shape) for parameter, name in names.items()}})
    narrow, expected = dict(pruned.named_parameters(remove_duplicate=False)), kept_shapes(plan)
    for name, parameter in narrow.items():
        if expected.get(name, parameter.shape) != tuple(parameter.shape):
            raise PlanError(
                f"the pruned network was not cut by this plan: {name!r} has shape {tuple(parameter.shape)} and would "
                f"have {expected[name]}"
            )
    new_of = {p: narrow[name] for name, p in model.named_parameters(remove_duplicate=False) if name in narrow}
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    twin.param_groups = []
    for group in optimizer.param_groups:
        pairs = [(p, new_of.get(p, p)) for p in group["params"] if p in new_of or p not in names]
        twin.param_groups.append({**group, "params": [new for _, new in pairs]})
        for old, new in pairs:
            if old in optimizer.state:
                twin.state[new] = _cut(optimizer.state[old], old, names.get(old, ""), plan)
    return twin


def _cut(state: Mapping[str, Any], parameter: Tensor, name: str, plan: Plan) -> dict[str, Any]:
    keep = plan.keep[name] if name else (None,) * parameter.ndim
    return {key: _cut_value(value, key, parameter, keep, name) for key, value in state.items()}


def _cut_value(value: Any, key: str, parameter: Tensor, keep: tuple[Tensor | None, ...], name: str) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach().clone()
    if value.ndim == 0:
        return value
    if value.ndim != parameter.ndim or any(v not in (1, p) for v, p in zip(value.shape, parameter.shape, strict=True)):
        raise PlanError(
            f"the optimiser's {key!r} of {name} has shape {tuple(value.shape)}, which does not follow the parameter's "
            f"{tuple(parameter.shape)}: start a fresh optimiser for the pruned network"
        )
    for dim, index in enumerate(keep):
        if index is not None and value.shape[dim] == parameter.shape[dim]:
            value = value.index_select(dim, index.to(value.device))
    return value


_ABSENT = "absent"


@dataclass(frozen=True)
class GroupDifference:
    """A channel group of which the two plans keep different channels."""

    name: str  # the group's name
    kept: tuple[int, int]  # the numbers of channels kept by the first plan and by the second
    only_first: str  # channels that only the first plan keeps, as ranges such as ``"0-3,7"``
    only_second: str  # the same for the second plan


@dataclass(frozen=True)
class PlanDifference:
    """The differences of two plans; false if they are equal."""

    groups: tuple[GroupDifference, ...]  # the groups with different kept channels, in the first plan's order
    # The values of each setting that differs, the first plan's first; "absent" where a plan has none.
    settings: Mapping[str, tuple[Any, Any]]
    networks: Mapping[str, tuple[Any, Any]]  # shapes of tensors that differ, if the plans are for different networks
    equal_groups: int  # how many groups keep the same channels

    def __bool__(self) -> bool:
        return bool(self.groups or self.settings or self.networks)

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {"equal": not self, **asdict(self)}


def difference(first: Plan, second: Plan) -> PlanDifference:
    """The differences of two plans."""
    shared = [name for name in first.groups if name in second.groups]
    changed = [name for name in shared if first.groups[name] != second.groups[name]]
    groups = [_group_difference(name, first.groups[name], second.groups[name]) for name in changed]
    networks = _differing(first.shapes, second.shapes)
    # Different networks have different groups, or groups of different names; those are not compared by channels.
    networks |= {f"group {name}": value for name, value in _differing_names(first.groups, second.groups).items()}
    return PlanDifference(
        tuple(groups), _differing(first.settings, second.settings), networks, len(shared) - len(changed)
    )


def read_plan(place: Path) -> Plan:
    """The plan in a file, or in the folder of a saved network. Raises PlanError: there is none."""
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
