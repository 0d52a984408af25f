"""The order in which the steps of all groups are taken, and the places in it where one may stop."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.groups import Group, position
from fxprune.planning.staircase import IntArray, Staircase

__all__ = ["StepSequence", "alike_sequence", "score_sequence", "uniform_sequence"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepSequence:
    """Steps in the order in which they are taken.

    Attributes:
        owners: group numbers; the n-th mention of a group is its n-th step.
        ends: the lengths at which the sequence may stop, ascending, the last one its own; steps in between go together.
    """

    owners: IntArray
    ends: IntArray

    def levels(self, moves: int, groups: int) -> IntArray:
        """The level of each group after that many moves, which are the stretches from one end to the next."""
        taken = self.owners[: self.ends[moves - 1]] if moves else self.owners[:0]
        return np.bincount(taken, minlength=groups).astype(np.int64)


def score_sequence(stairs: Staircase, scores: Mapping[Group, FloatArray], pays: NDArray[np.bool_]) -> StepSequence:
    """By the mean score of a step's units, groups that save nothing left out; equal ones in the order of the groups."""
    owners, _, keys = _steps(stairs, _score_keys(stairs, scores))
    order = np.argsort(keys, kind="stable")
    order = order[pays[owners[order]]]
    return StepSequence(owners[order], np.arange(1, len(order) + 1, dtype=np.int64))


def alike_sequence(stairs: Staircase, scores: Mapping[Group, FloatArray], pays: NDArray[np.bool_]) -> StepSequence:
    """As :func:`score_sequence`, but the n-th steps of groups in the same place of repeated blocks are one move, whose
    score is their mean."""
    kinds: dict[Hashable, int] = {}
    places = [_place(g) if stairs.heights[n] else ("whole", n) for n, g in enumerate(stairs.groups)]
    kind = np.array([kinds.setdefault(place, len(kinds)) for place in places], dtype=np.int64)
    lowest = np.full(len(kinds), np.iinfo(np.int64).max)
    np.minimum.at(lowest, kind, stairs.heights)
    owners, number, keys = _steps(stairs, _score_keys(stairs, scores))
    kept = (number < lowest[kind[owners]]) & np.isin(kind[owners], kind[pays])
    owners, number, keys = owners[kept], number[kept], keys[kept]
    _, move = np.unique(np.stack([kind[owners], number]), axis=1, return_inverse=True)
    move = move.reshape(-1)
    means = np.bincount(move, keys) / np.bincount(move)
    order = np.lexsort((owners, move, means[move]))
    return StepSequence(owners[order], _ends(move[order]))


def uniform_sequence(stairs: Staircase) -> StepSequence:
    """By the share of the group that is gone half-way through a step: at each end all groups have lost the same share,
    rounded to the nearest step, and groups of one size have one width."""
    keys = [(steps[:-1] + steps[1:]) / group.size for group, steps in zip(stairs.groups, stairs.steps, strict=True)]
    owners, _, flat = _steps(stairs, keys)
    order = np.argsort(flat, kind="stable")
    return StepSequence(owners[order], _ends(flat[order]))


def _ends(marks: NDArray[np.generic]) -> IntArray:
    """Where runs of equal marks end."""
    changes: IntArray = np.flatnonzero(marks[1:] != marks[:-1]) + 1
    return np.concatenate([changes, [len(marks)] if len(marks) else []]).astype(np.int64)


def _steps(stairs: Staircase, keys: list[FloatArray]) -> tuple[IntArray, IntArray, FloatArray]:
    """Of every step the number of its group, which of the group's steps it is, and its key."""
    owners = np.repeat(np.arange(len(keys), dtype=np.int64), stairs.heights)
    number = np.concatenate([*(np.arange(len(k), dtype=np.int64) for k in keys), np.zeros(0, dtype=np.int64)])
    return owners, number, np.concatenate([*keys, np.zeros(0, dtype=np.float64)])


def _score_keys(stairs: Staircase, scores: Mapping[Group, FloatArray]) -> list[FloatArray]:
    triples = zip(stairs.groups, stairs.orders, stairs.steps, strict=True)
    return [_block_means(scores[group][order], steps) for group, order, steps in triples]


def _block_means(ascending: FloatArray, steps: IntArray) -> FloatArray:
    """The mean score of the units that go with each step."""
    if len(steps) == 1:
        return np.zeros(0, dtype=np.float64)
    totals = np.add.reduceat(ascending[: steps[-1]], steps[:-1])
    means: FloatArray = totals / np.diff(steps)
    # Ascending by construction; rounding must not turn two steps of one group around.
    return np.maximum.accumulate(means)


def _place(group: Group) -> Hashable:
    """What groups in the same place of repeated blocks have in common: size, and members but for numbers in paths."""
    members = sorted((_numberless(m.tensor), m.dim, m.role, m.axis.size) for m in group.members)
    return group.size, group.crosses_add, group.crosses_norm, position(group), tuple(members)


def _numberless(tensor: str) -> str:
    """The path without its numbers; those in a layer's own name stay: conv1 and conv2 are two places of a block."""
    *above, layer, name = ["", *tensor.split(".")]
    blocks = re.sub(r"\d+", "#", ".".join(above))
    return f"{blocks}.{'#' if layer.isdecimal() else layer}.{name}"
