"""How much is left of the layers that pruning is about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import fxprune

CHANNEL_RATIO = 0.4
"""Removing this share of every group leaves 0.6 * 0.6 = 0.36 of a layer whose inputs and outputs are both free."""

Keep = Mapping[str, tuple[torch.Tensor | None, ...]]


def layer_weights(graph: fxprune.ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights with an input and an output width, those whose widths are all pinned included."""
    names = {member.tensor for group in graph.groups for member in group.members}
    names |= {pinned.tensor for pinned in graph.pinned}
    parameters = graph.captured.parameters
    return {name: graph.shapes[name] for name in names & parameters if len(graph.shapes[name]) >= 2}


def share_left(weights: Mapping[str, tuple[int, ...]], keep: Keep) -> float:
    """The share of the elements of ``weights`` that ``keep`` leaves."""
    left = sum(math.prod(_sizes(shape, keep[name])) for name, shape in weights.items())
    return left / sum(math.prod(shape) for shape in weights.values())


def _sizes(shape: tuple[int, ...], kept: tuple[torch.Tensor | None, ...]) -> list[int]:
    return [size if index is None else len(index) for size, index in zip(shape, kept, strict=True)]


def share_left_by_uniform_plan(model: nn.Module, sample: Any) -> float:
    """The share of layer weights that stays when ``CHANNEL_RATIO`` of every group that is not pinned goes."""
    plan = fxprune.plan(model, sample, CHANNEL_RATIO, budget="channels", scope="uniform")
    return share_left(layer_weights(fxprune.analyze(model, sample)), plan.keep)
