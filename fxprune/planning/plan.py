"""The plan: the indices of each tensor dim that stay. It can be reviewed, stored and replayed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels
from fxprune.errors import PlanError
from fxprune.planning.plan_text import plan_as_text, read_parts, write_parts
from fxprune.util.tables import PrintedInNotebook
from fxprune.util.writing import checked_path, file_errors, write_text

Keep = tuple[Tensor | None, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Plan(PrintedInNotebook):
    """The decision about one network: which channels and indices stay.

    Attributes:
        keep: for every parameter and buffer, one entry per dim: the kept indices, ascending, int64, or None for all.
            ``keep["conv1.weight"][0][new]`` is the old index of the new row ``new``.
        groups: for every group, the channels that stay, ascending.
        shapes: the original shape of every parameter and buffer.
        settings: the options that led to the plan (ratio, budget, criterion, ...), JSON values.
    """

    keep: Mapping[str, Keep]
    groups: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Any]

    @classmethod
    def from_masks(cls, graph: ChannelGraph, masks: Mapping[Group, Mask], settings: Mapping[str, Any]) -> Plan:
        """The plan that keeps the channels marked in ``masks`` (a group that is absent keeps all).

        Raises:
            PlanError: a mask has the wrong shape, or leaves a group, a tensor's dim or an activation empty.
        """
        by_variable: dict[Channels, Mask] = {}
        for group in graph.groups:
            mask = np.asarray(masks.get(group, group.without(())))
            if mask.shape != (group.size,) or mask.dtype != np.bool_ or not mask.any():
                raise PlanError(f"group {group.name!r} needs a boolean mask of {group.size} channels that keeps some")
            by_variable[group.variable] = mask
        keep = _keep(graph, by_variable)
        empty = next((n for n, dims in keep.items() if any(k is not None and not k.numel() for k in dims)), None)
        if empty is not None:
            raise PlanError(
                f"these masks leave a dim of {empty!r} empty; keep at least one channel of each of its dims"
            )
        _check_activations(graph, by_variable)
        groups = {g.name: tuple(np.flatnonzero(by_variable[g.variable]).tolist()) for g in graph.groups}
        shapes = {name: tuple(shape) for name, shape in graph.shapes.items()}
        return cls(keep, groups, shapes, dict(settings))

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that a network's parameters and buffers are those that the plan was made for.

        Raises:
            PlanError: a tensor is missing, unknown or of another shape; the message names it.
        """
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise PlanError(f"this plan is for another network: it cuts {name!r}, which this network does not have")
            if tuple(shapes[name]) != shape:
                raise PlanError(
                    f"this plan is for another network: {name!r} had shape {shape}, here it has {tuple(shapes[name])}"
                )
        unknown = next((name for name in shapes if name not in self.shapes), None)
        if unknown is not None:
            raise PlanError(f"this plan is for another network: it does not know {unknown!r}")

    def masks(self, graph: ChannelGraph) -> dict[Channels, Mask]:
        """The mask of every group's variable, after checking that the plan fits the graph.

        Raises:
            PlanError: the tensors or groups differ, or the kept indices do not follow from the groups.
        """
        self.check(graph.shapes)
        names = {group.name for group in graph.groups}
        if names != self.groups.keys():
            odd = sorted(names ^ self.groups.keys())[0]
            raise PlanError(f"this plan is for another network: only one of the two has the channel group {odd!r}")
        masks = {group.variable: _mask(group, self.groups[group.name]) for group in graph.groups}
        for name, expected in _keep(graph, masks).items():
            if not same_indices(expected, self.keep[name]):
                raise PlanError(
                    f"the plan contradicts itself: kept indices of {name!r} are not those of its groups; who edits "
                    '"groups" by hand has to edit "tensors" too, or use fxprune.remove'
                )
        _check_activations(graph, masks)
        return masks

    def to_json(self) -> str:
        """Stable text: sorted keys, one tensor per line, index ranges. Equal plans give equal bytes."""
        return write_parts(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: the text is not a plan; the message says where.
        """
        return cls(**read_parts(text))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON text; the file appears whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        write_text(checked_path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a saved plan.

        Raises:
            PlanError: the file is not a plan.
            FileError: the file cannot be read.
        """
        file = checked_path(path)
        with file_errors(f"{file} cannot be read"):
            content = file.read_bytes()
        try:
            return cls.from_json(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise PlanError(f"{file}: a plan is UTF-8 text: {error}") from error
        except PlanError as error:
            raise PlanError(f"{file}: {error}") from error

    def expand(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A pruned network's state dict at the original's sizes: kept entries in their old places, zeros elsewhere.

        Args:
            state: tensors of the kept shapes by name, also after training. Tensors that the plan does not know stay as
                they are; further names of a tensor that it knows are expanded, too.

        Raises:
            PlanError: a tensor's shape is not the one that the plan leaves, or this is not a state dict of tensors.
        """
        if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise PlanError("a state dict maps names to tensors: pass the result of the pruned network's state_dict()")
        known = {(t.data_ptr(), t.shape): name for name, t in state.items() if name in self.shapes}
        full: dict[str, Tensor] = {}
        for name, tensor in state.items():
            first = name if name in self.shapes else known.get((tensor.data_ptr(), tensor.shape))
            full[name] = tensor if first is None else self._expanded(first, tensor)
        return full

    def _expanded(self, name: str, tensor: Tensor) -> Tensor:
        pairs = list(zip(self.shapes[name], self.keep[name], strict=True))
        kept = tuple(size if index is None else len(index) for size, index in pairs)
        if tuple(tensor.shape) != kept:
            raise PlanError(f"the plan leaves {name!r} with shape {kept}, not {tuple(tensor.shape)}")
        for dim, (size, index) in enumerate(pairs):
            if index is not None:
                wider = tensor.new_zeros((*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]))
                tensor = wider.index_copy_(dim, index.to(tensor.device), tensor)
        return tensor

    def __repr__(self) -> str:
        stay = sum(map(len, self.groups.values()))
        return f"<Plan: {len(self.groups)} groups, {stay} channels stay; {len(self.shapes)} tensors>"

    def __str__(self) -> str:
        return plan_as_text(self)

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_json())


def _mask(group: Group, kept: tuple[int, ...]) -> Mask:
    if not kept or max(kept) >= group.size:
        raise PlanError(
            f"this plan is for another network: channel group {group.name!r} has {group.size} channels here"
        )
    return group.keeping(kept)


def _keep(graph: ChannelGraph, masks: Mapping[Channels, Mask]) -> dict[str, Keep]:
    known: dict[Axis, Tensor | None] = {}
    keep: dict[str, Keep] = {}
    for name, axes in graph.tensors.items():
        for axis in axes:
            if axis not in known:
                known[axis] = _indices(kept_mask(axis, masks))
        keep[name] = tuple(known[axis] for axis in axes)
    return keep


def _check_activations(graph: ChannelGraph, masks: Mapping[Channels, Mask]) -> None:
    if not all(kept_mask(axis, masks).any() for axis in graph.activations):
        raise PlanError("the plan leaves an activation without any channel: keep some of those that are sliced out")
    for axis, fewest in graph.fewest:
        if kept_mask(axis, masks).sum() < fewest:
            raise PlanError(
                f"the plan leaves fewer than {fewest} channels where an op (squeeze, topk, a variance or a norm) needs "
                "as many: keep more"
            )


def _indices(mask: Mask) -> Tensor | None:
    return None if bool(mask.all()) else torch.from_numpy(np.flatnonzero(mask).astype(np.int64))


def same_indices(left: Keep, right: Keep) -> bool:
    """Whether the kept indices of two tensors are the same, dim by dim."""

    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b or (a is not None and b is not None and torch.equal(a, b))

    return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))


def setting(plan: Plan, name: str, default: Any) -> Any:
    """A setting of a plan. Its type is checked against ``default``, because a plan may come from a file.

    Raises:
        PlanError: the value is of another type.
    """
    value = plan.settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
        raise PlanError(f"the plan says {name} = {value!r}, which is no {type(default).__name__}")
    return value
