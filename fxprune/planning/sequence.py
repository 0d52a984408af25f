"""The order in which the steps of all groups are taken."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fxprune.groups import Group
from fxprune.planning.staircase import IntArray, Staircase

__all__ = ["step_sequence"]

FloatArray = NDArray[np.float64]


def step_sequence(stairs: Staircase, scores: Mapping[Group, FloatArray], *, uniform: bool) -> IntArray:
    """Group numbers; the n-th mention of a group is its n-th step. Equal keys go in the order of the groups.

    Globally a step's key is the mean score of its units. Uniformly it is the share of the group that is gone before it,
    so that all groups lose the same share, rounded up.
    """
    keys: list[FloatArray] = []
    for group, order, steps in zip(stairs.groups, stairs.orders, stairs.steps, strict=True):
        keys.append(steps[:-1] / group.size if uniform else _block_means(scores[group][order], steps))
    owners = np.repeat(np.arange(len(keys), dtype=np.int64), [len(k) for k in keys])
    flat = np.concatenate([*keys, np.zeros(0, dtype=np.float64)])
    sequence: IntArray = owners[np.argsort(flat, kind="stable")]
    return sequence


def _block_means(ascending: FloatArray, steps: IntArray) -> FloatArray:
    """The mean score of the units that go with each step."""
    if len(steps) == 1:
        return np.zeros(0, dtype=np.float64)
    totals = np.add.reduceat(ascending[: steps[-1]], steps[:-1])
    means: FloatArray = totals / np.diff(steps)
    # Ascending by construction; rounding must not turn two steps of one group around.
    return np.maximum.accumulate(means)
