"""Blocks in which views and pieces of one dim cross: what unification has to refine on both sides at once."""

from __future__ import annotations

from tests.nets.blocks.composite import Block
from tests.nets.draft import Draft
from tests.nets.steps.pieces import Concat, Pad, Reindex


def _viewed(draft: Draft, x: str, groups: int) -> str:
    """The channels of ``x`` as ``groups`` rows, turned, and flat again."""
    channels, height, width = draft.sizes(x)[1:]
    y = draft.reshape(x, (1, (groups, channels // groups)), (1, (height,)), (1, (width,)))
    return draft.reshape(draft.permute(y, 0, 2, 1, 3, 4), (2, (channels,)), (1, (height,)), (1, (width,)))


def _every_second(draft: Draft, x: str, start: int) -> str:
    size = draft.sizes(x)[1]
    return draft.add(Reindex(draft.name(), x, 1, tuple(range(start, size, 2)), f"{{x}}[:, {start}::2]"))


def strided_slice_of_concat(draft: Draft, x: str) -> str:
    """Every second channel of two values end to end, and the others, joined again or added."""
    first, second = draft.conv(x, draft.width(largest=8)), draft.conv(x, draft.width(largest=8))
    joined = draft.add(Concat(draft.name(), (first, second), 1))
    even = _every_second(draft, joined, 0)
    if draft.sizes(joined)[1] % 2 or draft.flag():
        return even
    odd = _every_second(draft, joined, 1)
    return draft.binary(even, odd) if draft.flag() else draft.add(Concat(draft.name(), (odd, even), 1))


def splits_of_splits(draft: Draft, x: str) -> str:
    """Pieces cut again at other places, some of them joined across the first cut."""
    sizes = [draft.integer(2, 4) for _ in range(3)]
    left, middle, right = draft.split(draft.conv(x, sum(sizes)), 1, sizes)
    first, rest = draft.split(left, 1, (1, sizes[0] - 1))
    head, tail = draft.split(right, 1, (sizes[2] - 1, 1))
    pieces = draft.choice(((rest, middle, head), (head, middle, rest), (first, rest, middle, head, tail)))
    return draft.add(Concat(draft.name(), pieces, 1))


def grouped_inside_concat(draft: Draft, x: str) -> str:
    """A grouped convolution over values end to end, whose sum with another one has cuts elsewhere."""
    groups = draft.choice((2, 3))
    width = groups * draft.integer(1, 3)
    parts = [draft.conv(x, size) for size in draft.choice(((width, width), (1, 2 * width - 1), (width + 1, width - 1)))]
    joined = draft.add(Concat(draft.name(), tuple(parts), 1))
    y = draft.conv(joined, draft.choice((2 * width, 4 * width)), draft.choice((1, 3)), groups=groups)
    if draft.sizes(y)[1] != 2 * width:
        y = draft.conv(y, 2 * width)
    return draft.binary(joined, y, draft.choice(("+", "*")))


def several_views(draft: Draft, x: str) -> str:
    """One value read by two or three consumers that view its channels by other factors, added or joined."""
    y = draft.conv(x, draft.choice((4, 6, 8, 12)))
    channels = draft.sizes(y)[1]
    views = [_viewed(draft, y, draft.divisor(channels, 2)) for _ in range(draft.integer(1, 2))]
    if draft.flag():
        half = channels // 2
        left, right = draft.split(y, 1, (half, half))
        views.append(draft.add(Concat(draft.name(), (right, left), 1)))
    if draft.flag():
        return draft.add(Concat(draft.name(), (y, *views), 1))
    for view in views:
        y = draft.binary(y, view)
    return y


def concat_against_product(draft: Draft, x: str) -> str:
    """Values end to end added to a value whose channels are rows of a view, aligned with the pieces or not."""
    rows, inner = draft.integer(2, 4), draft.integer(2, 3)
    first = inner * draft.integer(1, rows - 1) if draft.flag() else draft.integer(1, rows * inner - 1)
    parts = (draft.conv(x, first), draft.conv(x, rows * inner - first))
    joined = draft.add(Concat(draft.name(), parts, 1))
    return draft.binary(joined, _viewed(draft, draft.conv(x, rows * inner), draft.choice((rows, inner))))


def padded_and_cut(draft: Draft, x: str) -> str:
    """Zero channels around, then a cut that runs through them, then a sum with the value itself."""
    size = draft.sizes(x)[1]
    before, after = draft.integer(1, 2), draft.integer(1, 2)
    wide = draft.add(Pad(draft.name(), x, 1, before, after, 4))
    cut = draft.integer(1, size + before + after - 1)
    left, right = draft.split(wide, 1, (cut, size + before + after - cut))
    swapped = draft.add(Concat(draft.name(), (right, left), 1))
    return draft.conv(draft.binary(wide, swapped) if draft.flag() else swapped, size)


def turned_twice(draft: Draft, x: str) -> str:
    """A value added to itself flipped, rolled, or both."""
    size = draft.sizes(x)[1]
    order = list(range(size))
    y = draft.add(Reindex(draft.name(), x, 1, tuple(order[::-1]), "{x}.flip(1)"))
    if size > 2 and draft.flag():
        shift = draft.integer(1, size - 1)
        y = draft.add(Reindex(draft.name(), y, 1, tuple(order[-shift:] + order[:-shift]), f"{{x}}.roll({shift}, 1)"))
    return draft.binary(x, y)


def ragged_views(draft: Draft, x: str) -> str:
    """Two turned views whose factors have to be cut on both sides, added."""
    first, second = draft.choice(((6, 2), (2, 6), (4, 2), (6, 4)))
    return draft.binary(_viewed(draft, draft.conv(x, 12), first), _viewed(draft, draft.conv(x, 12), second))


def pieces_of_views(draft: Draft, x: str) -> str:
    """A turned view cut at a row into two pieces of different lengths, which are read apart."""
    rows, inner = draft.integer(3, 5), draft.integer(2, 3)
    y = _viewed(draft, draft.conv(x, rows * inner), inner)
    first = inner * draft.integer(1, rows - 1)
    left, right = draft.split(y, 1, (first, rows * inner - first))
    left = draft.conv(left, first) if draft.flag() else draft.binary(left, draft.conv(x, first))
    return draft.add(Concat(draft.name(), (right, left), 1))


def rolled_against_view(draft: Draft, x: str) -> str:
    """A value rolled by whole rows, added to the rows of a turned view."""
    inner, rows = draft.integer(2, 3), draft.integer(3, 4)
    size, shift = rows * inner, inner * draft.integer(1, rows - 1)
    order = list(range(size))
    turned = tuple(order[-shift:] + order[:-shift])
    rolled = draft.add(Reindex(draft.name(), draft.conv(x, size), 1, turned, f"{{x}}.roll({shift}, 1)"))
    return draft.binary(rolled, _viewed(draft, draft.conv(x, size), inner))


def every_second_turned(draft: Draft, x: str) -> str:
    """Every second channel of a flipped value, added to a value of its own."""
    y = draft.conv(x, draft.integer(4, 9))
    order = tuple(range(draft.sizes(y)[1]))[::-1]
    half = _every_second(draft, draft.add(Reindex(draft.name(), y, 1, order, "{x}.flip(1)")), draft.integer(0, 1))
    other = draft.conv(x, draft.sizes(half)[1])
    return draft.add(Concat(draft.name(), (y, draft.binary(half, other)), 1))


# What the analysis groups exactly as the coupling says, and what it may pin more of: sizes that cut across one another
# where no single cut of either side serves. Never the other way round.
ALIGNED: tuple[Block, ...] = (
    strided_slice_of_concat,
    splits_of_splits,
    padded_and_cut,
    turned_twice,
)
UNALIGNED: tuple[Block, ...] = (
    grouped_inside_concat,
    several_views,
    concat_against_product,
)
CROSSED = (*ALIGNED, *UNALIGNED)
# Drawn for deliberate faults alone, which show in them and in no others.
FAULTS_SHOW: tuple[Block, ...] = (ragged_views, pieces_of_views, rolled_against_view, every_second_turned)
