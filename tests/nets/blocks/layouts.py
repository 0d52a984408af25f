"""Blocks that change the layout: images to tokens and back, either of them to vectors."""

from __future__ import annotations

from math import isqrt

from tests.nets.draft import Draft
from tests.nets.steps.pieces import Select
from tests.nets.steps.spatial import Pool, Reduce

LARGEST_FLAT = 400


def image_to_tokens(draft: Draft, x: str) -> str:
    """``(batch, channels, height, width)`` to ``(batch, height * width, channels)``."""
    _, channels, height, width = draft.sizes(x)
    if draft.flag():
        return draft.reshape(draft.permute(x, 0, 2, 3, 1), (2, (height * width,)), (1, (channels,)))
    return draft.permute(draft.reshape(x, (1, (channels,)), (2, (height * width,))), 0, 2, 1)


def tokens_to_image(draft: Draft, x: str) -> str:
    """A square number of tokens as an image; others through a linear layer across tokens to four of them."""
    if isqrt(draft.sizes(x)[1]) ** 2 != draft.sizes(x)[1]:
        x = draft.permute(draft.linear(draft.permute(x, 0, 2, 1), 4), 0, 2, 1)
    _, length, channels = draft.sizes(x)
    side = isqrt(length)
    return draft.reshape(draft.permute(x, 0, 2, 1), (1, (channels,)), (1, (side, side)))


def image_to_vector(draft: Draft, x: str) -> str:
    """Global pooling, or every position of every channel in one row."""
    channels, height, width = draft.sizes(x)[1:]
    kind = draft.choice(("pool", "mean", "flatten", "flatten_last"))
    if kind == "mean" or channels * height * width > LARGEST_FLAT:
        return draft.add(Reduce(draft.name(), x, (2, 3)))
    if kind == "pool":
        return draft.reshape(draft.add(Pool(draft.name(), x, "adaptive")), (3, (channels,)))
    if kind == "flatten_last":
        return draft.reshape(draft.permute(x, 0, 2, 3, 1), (3, (channels * height * width,)))
    return draft.reshape(x, (3, (channels * height * width,)))


def tokens_to_vector(draft: Draft, x: str) -> str:
    """The mean of the tokens, the first of them, or all of them in one row."""
    length, channels = draft.sizes(x)[1:]
    kind = draft.choice(("mean", "first", "flatten"))
    if kind == "first":
        return draft.add(Select(draft.name(), x, 1, 0, draft.flag()))
    if kind == "mean" or length * channels > LARGEST_FLAT:
        return draft.add(Reduce(draft.name(), x, (1,)))
    return draft.reshape(x, (2, (length * channels,)))


def vector_to_image(draft: Draft, x: str) -> str:
    """A linear layer whose outputs are laid out as an image."""
    channels, side = draft.width(largest=8), draft.choice((2, 4))
    return draft.reshape(draft.linear(x, channels * side * side), (1, (channels, side, side)))


def vector_to_tokens(draft: Draft, x: str) -> str:
    """A linear layer whose outputs are laid out as tokens."""
    length, channels = draft.integer(2, 5), draft.width(largest=8)
    return draft.reshape(draft.linear(x, length * channels), (1, (length, channels)))
