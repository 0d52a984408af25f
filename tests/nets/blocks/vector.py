"""Blocks from vectors ``(batch, channels)`` to vectors."""

from __future__ import annotations

from tests.nets.blocks.composite import Block
from tests.nets.blocks.tokens import gated
from tests.nets.draft import Draft
from tests.nets.steps.norms import BatchNorm
from tests.nets.steps.pieces import Concat
from tests.nets.steps.spatial import Reduce


def layer(draft: Draft, x: str) -> str:
    """Linear, maybe batch norm, an activation."""
    y = draft.linear(x, draft.width())
    if draft.flag():
        y = draft.add(BatchNorm(draft.name(), y, draft.name("norm"), draft.sizes(y)[1], 1, draft.flag()))
    return draft.activation(y)


def residual(draft: Draft, x: str) -> str:
    """Two linear layers around a skip."""
    return draft.binary(x, draft.linear(layer(draft, x), draft.sizes(x)[1]))


def concatenated(draft: Draft, x: str) -> str:
    """The input beside a layer of it."""
    return draft.add(Concat(draft.name(), (x, layer(draft, x)), 1))


def pooled_groups(draft: Draft, x: str) -> str:
    """Channels seen as groups, and one number taken from each group or across them."""
    groups, width = draft.integer(2, 5), draft.integer(2, 4)
    split = draft.reshape(draft.linear(x, groups * width), (1, (groups, width)))
    return draft.add(Reduce(draft.name(), split, (draft.choice((1, 2)),), draft.choice(("sum", "amax", "mean"))))


VECTOR: tuple[Block, ...] = (layer, residual, concatenated, gated, pooled_groups)
