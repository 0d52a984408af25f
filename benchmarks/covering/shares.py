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

_ENDS = ("the network's input", "the network's output")

Keep = Mapping[str, tuple[torch.Tensor | None, ...]]


def layer_weights(graph: fxprune.ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights with an input and an output width, those whose widths are all pinned included."""
    names = {member.tensor for group in graph.groups for member in group.members}
    names |= {pinned.tensor for pinned in graph.pinned}
    parameters = graph.captured.parameters
    return {name: graph.shapes[name] for name in names & parameters if len(graph.shapes[name]) >= 2}


def inner_weights(graph: fxprune.ChannelGraph) -> dict[str, tuple[int, ...]]:
    """The same without the layers that read the network's input or write its output, which must keep a width.

    Where a part of the network is opaque, its borders are such ends for what lies inside, so there all layers count.
    """
    if graph.opaque:
        return layer_weights(graph)
    ends = {pinned.tensor for pinned in graph.pinned if pinned.reason.endswith(_ENDS)}
    return {name: shape for name, shape in layer_weights(graph).items() if name not in ends}


def share_left(weights: Mapping[str, tuple[int, ...]], keep: Keep) -> float:
    """The share of the elements of ``weights`` that ``keep`` leaves."""
    left = sum(math.prod(sizes_left(shape, keep[name])) for name, shape in weights.items())
    return left / sum(math.prod(shape) for shape in weights.values())


def sizes_left(shape: tuple[int, ...], kept: tuple[torch.Tensor | None, ...]) -> list[int]:
    """What is left of each dim."""
    return [size if index is None else len(index) for size, index in zip(shape, kept, strict=True)]


def shares_left(graph: fxprune.ChannelGraph, keep: Keep) -> dict[str, float]:
    """``share_left`` of the inner layers, and ``share_left_all`` of all."""
    inner, whole = inner_weights(graph), layer_weights(graph)
    return {"share_left": share_left(inner or whole, keep), "share_left_all": share_left(whole, keep)}


def shares_left_by_uniform_plan(model: nn.Module, sample: Any) -> dict[str, float]:
    """What stays when ``CHANNEL_RATIO`` of every group that is not pinned goes."""
    plan = fxprune.plan(model, sample, CHANNEL_RATIO, budget="channels", scope="uniform")
    return shares_left(fxprune.analyze(model, sample), plan.keep)
