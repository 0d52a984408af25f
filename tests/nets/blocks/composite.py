"""Blocks from images to images made of several layers: residuals, concats, gates, shuffles."""

from __future__ import annotations

from collections.abc import Callable

from tests.nets.blocks import image
from tests.nets.draft import Draft
from tests.nets.steps.contractions import Softmax
from tests.nets.steps.convolution import Convolution
from tests.nets.steps.copies import Expand, Repeat
from tests.nets.steps.norms import LayerNorm
from tests.nets.steps.pieces import Concat, Pad, Reindex, Stack
from tests.nets.steps.pointwise import Binary
from tests.nets.steps.shapes import Reshape, Segment
from tests.nets.steps.spatial import GLU, ChannelShuffle, Interpolate, Pool, Reduce

Block = Callable[[Draft, str], str]


def branch(draft: Draft, x: str, most: int = 2) -> str:
    """A few single layers that keep height and width."""
    for _ in range(draft.integer(1, most)):
        x = draft.choice(image.SINGLE)(draft, x)
    return x


def residual(draft: Draft, x: str) -> str:
    """``x + f(x)``; where widths differ, one side is projected."""
    y = branch(draft, x)
    if draft.sizes(y)[1] != draft.sizes(x)[1]:
        if draft.flag():
            x = draft.conv(x, draft.sizes(y)[1])
        else:
            y = draft.conv(y, draft.sizes(x)[1])
    return draft.binary(x, y)


def concatenated(draft: Draft, x: str) -> str:
    """Two to four branches side by side, one of them maybe the input itself."""
    branches = [branch(draft, x, most=1) for _ in range(draft.integer(1, 3))]
    return draft.add(Concat(draft.name(), (x if draft.flag() else draft.conv(x, draft.width(largest=6)), *branches), 1))


def squeeze_excite(draft: Draft, x: str) -> str:
    """Channels weighed by a small network of their means."""
    channels = draft.sizes(x)[1]
    if draft.flag():
        pooled = draft.add(Pool(draft.name(), x, draft.choice(("adaptive", "adaptive_max"))))
        hidden = draft.activation(draft.conv(pooled, draft.width(largest=6)))
        return draft.binary(x, draft.function(draft.conv(hidden, channels), "sigmoid"), "*")
    pooled = draft.add(Reduce(draft.name(), x, (2, 3)))
    hidden = draft.activation(draft.linear(pooled, draft.width(largest=6)))
    gate = draft.function(draft.linear(hidden, channels), "hardsigmoid")
    return draft.binary(x, draft.reshape(gate, (1, (channels, 1, 1)), style="literal"), "*")


def shuffled(draft: Draft, x: str) -> str:
    """A channel shuffle, as a module or by view, transpose, view."""
    channels, height, width = draft.sizes(x)[1:]
    groups = draft.divisor(channels)
    if draft.flag():
        return draft.add(ChannelShuffle(draft.name(), x, draft.name("shuffle"), groups))
    y = draft.reshape(x, (1, (groups, channels // groups)), (1, (height,)), (1, (width,)))
    return draft.reshape(draft.permute(y, 0, 2, 1, 3, 4), (2, (channels,)), (1, (height,)), (1, (width,)))


def split_and_join(draft: Draft, x: str) -> str:
    """Uneven pieces of the channels, one of them processed, joined in either order."""
    channels = draft.sizes(x)[1]
    if channels < 2:
        return branch(draft, x)
    first = draft.integer(1, channels - 1)
    left, right = draft.split(x, 1, (first, channels - first))
    right = branch(draft, right, most=1) if channels - first > 1 else right
    pieces = (right, left) if draft.flag() else (left, right)
    return draft.add(Concat(draft.name(), pieces, 1))


def gated(draft: Draft, x: str) -> str:
    """One half of the channels gates the other."""
    y = draft.conv(x, draft.width(2))
    if draft.flag():
        return draft.add(GLU(draft.name(), y, 1))
    half = draft.sizes(y)[1] // 2
    left, right = draft.split(y, 1, (half, half))
    return draft.binary(left, draft.activation(right), "*")


def odd_chunks(draft: Draft, x: str) -> str:
    """Two uneven chunks of an odd number of channels, the smaller one padded and added to the larger."""
    small = draft.integer(1, 6)
    left, right = draft.split(draft.conv(x, 2 * small + 1), 1, (small + 1, small))
    return draft.binary(left, draft.add(Pad(draft.name(), right, 1, 0, 1, 4)))


def padded_shortcut(draft: Draft, x: str) -> str:
    """Every second position and zero channels around: a shortcut without weights across a strided convolution."""
    before, after = draft.integer(0, 4), draft.integer(1, 4)
    channels, height, width = draft.sizes(x)[1:]
    y = image.finished(draft, draft.conv(x, channels + before + after, 3, stride=2))
    rows = Reindex(draft.name(), x, 2, tuple(range(0, height, 2)), "{x}[:, :, ::2]")
    columns = Reindex(draft.name(), draft.add(rows), 3, tuple(range(0, width, 2)), "{x}[:, :, :, ::2]")
    return draft.binary(y, draft.add(Pad(draft.name(), draft.add(columns), 1, before, after, 4)))


def inverted_bottleneck_last(draft: Draft, x: str) -> str:
    """Channels last: layer norm, two linear layers, layer scale or not, back and added."""
    channels = draft.sizes(x)[1]
    y = draft.permute(x, 0, 2, 3, 1)
    if draft.flag():
        y = draft.add(LayerNorm(draft.name(), y, draft.name("norm"), (channels,), draft.flag(), draft.flag()))
    y = draft.linear(draft.activation(draft.linear(y, draft.width())), channels)
    return draft.binary(x, draft.permute(y, 0, 3, 1, 2))


def spatial_gate(draft: Draft, x: str) -> str:
    """Positions weighed by statistics over channels."""
    kinds = ("sum",) if draft.flag() else ("mean", "amax")
    statistics = [draft.add(Reduce(draft.name(), x, (1,), kind, keepdim=True)) for kind in kinds]
    joined = draft.add(Concat(draft.name(), tuple(statistics), 1)) if len(statistics) > 1 else statistics[0]
    return draft.binary(x, draft.function(draft.conv(joined, 1, 3), "sigmoid"), "*")


def softmax_gate(draft: Draft, x: str) -> str:
    """Channels weighed by their own softmax."""
    return draft.binary(x, draft.add(Softmax(draft.name(), x, 1)), "*")


def shared_convolution(draft: Draft, x: str) -> str:
    """One convolution called twice, on its own output or on the pooled input."""
    channels, name, kernel = draft.sizes(x)[1], draft.name("conv"), draft.choice((1, 3))
    y = draft.add(Convolution(draft.name(), x, name, channels, channels, kernel))
    if draft.flag() or min(draft.sizes(x)[2:]) < 4 or draft.sizes(x)[2] % 2:
        return draft.add(Convolution(draft.name(), draft.activation(y), name, channels, channels, kernel))
    small = draft.add(Pool(draft.name(), x, "average"))
    z = draft.add(Convolution(draft.name(), small, name, channels, channels, kernel))
    return draft.add(Binary(draft.name(), y, draft.add(Interpolate(draft.name(), z))))


def copied(draft: Draft, x: str) -> str:
    """Channels repeated, interleaved, or one channel expanded."""
    kind = draft.choice(("interleave", "repeat", "expand"))
    if kind == "expand":
        mean = draft.add(Reduce(draft.name(), x, (1,), "sum", keepdim=True))
        return draft.binary(draft.add(Expand(draft.name(), mean, 1, draft.width(largest=6), 4)), draft.conv(x, 1))
    if draft.sizes(x)[1] > 8:
        x = draft.conv(x, draft.integer(2, 6))
    return draft.add(Repeat(draft.name(), x, 1, draft.integer(2, 3), 4, kind == "interleave"))


def selective_kernel(draft: Draft, x: str) -> str:
    """Two branches stacked and weighed by a softmax between the branches."""
    channels = draft.width(largest=8)
    branches = tuple(draft.conv(x, channels, kernel) for kernel in (1, 3))
    pooled = draft.add(Reduce(draft.name(), draft.binary(*branches), (2, 3)))
    weights = draft.reshape(draft.linear(pooled, 2 * channels), (1, (2, channels)))
    weights = draft.add(Softmax(draft.name(), weights, 1))
    weights = draft.reshape(weights, (1, (2,)), (1, (channels, 1, 1)), style="literal")
    weighed = draft.binary(draft.add(Stack(draft.name(), branches, 1)), weights, "*")
    return draft.add(Reduce(draft.name(), weighed, (1,), "sum"))


def regrouped(draft: Draft, x: str) -> str:
    """Views of one dim with different factors, swapped in between, so that boundaries have to be reconciled."""
    height, width = draft.sizes(x)[2:]
    first, second, third = (draft.integer(1, 3) for _ in range(3))
    channels = 2 * first * second * third
    y = draft.conv(x, channels)
    for groups in draft.choice(((2, 2 * first), (2 * first, 2), (first * 2, second * 2 if third % 2 == 0 else 2))):
        if channels % groups == 0:
            split = draft.reshape(y, (1, (groups, channels // groups)), (1, (height,)), (1, (width,)))
            merged = draft.permute(split, 0, 2, 1, 3, 4) if draft.flag() else draft.function(split, "tanh")
            y = draft.reshape(merged, (2, (channels,)), (1, (height,)), (1, (width,)))
    return y


def windowed(draft: Draft, x: str) -> str:
    """Windows of 2 x 2 positions moved into the batch, a linear layer over their tokens, and back."""
    channels, height, width = draft.sizes(x)[1:]
    if height % 2 or width % 2:
        return branch(draft, x)
    rows, columns = height // 2, width // 2
    y = draft.reshape(draft.permute(x, 0, 2, 3, 1), (1, (rows, 2)), (1, (columns, 2)), (1, (channels,)))
    y = draft.permute(y, 0, 1, 3, 2, 4, 5)
    merged = (Segment(3, (rows * columns,)), Segment(2, (4,)), Segment(1, (channels,)))
    y = draft.linear(draft.add(Reshape(draft.name(), y, merged)), draft.width())
    channels = draft.sizes(y)[2]
    parted = (Segment(1, (1, rows, columns)), Segment(1, (2, 2)), Segment(1, (channels,)))
    y = draft.permute(draft.add(Reshape(draft.name(), y, parted)), 0, 1, 3, 2, 4, 5)
    y = draft.reshape(y, (2, (height,)), (2, (width,)), (1, (channels,)))
    return draft.permute(y, 0, 3, 1, 2)


COMPOSITE: tuple[Block, ...] = (
    residual,
    concatenated,
    squeeze_excite,
    shuffled,
    split_and_join,
    gated,
    inverted_bottleneck_last,
    odd_chunks,
    padded_shortcut,
    spatial_gate,
    shared_convolution,
    copied,
    selective_kernel,
    softmax_gate,
    regrouped,
    windowed,
)
