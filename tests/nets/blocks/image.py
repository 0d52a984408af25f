"""Blocks from images ``(batch, channels, height, width)`` to images of the same layout: single layers."""

from __future__ import annotations

from tests.nets.draft import Draft
from tests.nets.steps.convolution import Convolution
from tests.nets.steps.norms import BatchNorm, GroupNorm, InstanceNorm
from tests.nets.steps.pieces import Pad, Reindex
from tests.nets.steps.pointwise import PReLU, Scale
from tests.nets.steps.spatial import Interpolate, PixelShuffle, Pool
from tests.nets.steps.tensors import BareTensor, Ramp

LARGEST_SIDE = 8


def norm(draft: Draft, x: str) -> str:
    """Batch norm mostly; group norm or instance norm sometimes."""
    channels, name, out = draft.sizes(x)[1], draft.name("norm"), draft.name()
    kind = draft.choice(("batch", "batch", "batch", "plain_batch", "group", "instance"))
    if kind == "group":
        return draft.add(GroupNorm(out, x, name, draft.divisor(channels), channels))
    if kind == "instance" and min(draft.sizes(x)[2:]) > 1:
        return draft.add(InstanceNorm(out, x, name, channels, draft.flag()))
    return draft.add(BatchNorm(out, x, name, channels, affine=kind != "plain_batch"))


def finished(draft: Draft, x: str) -> str:
    """Maybe a norm, maybe an activation."""
    if draft.flag():
        x = norm(draft, x)
    return draft.activation(x) if draft.flag() else x


def convolution(draft: Draft, x: str) -> str:
    """A convolution of kernel 1 or 3."""
    return finished(draft, draft.conv(x, draft.width(), draft.choice((1, 3))))


def strided_convolution(draft: Draft, x: str) -> str:
    """A convolution of stride 2."""
    return finished(draft, draft.conv(x, draft.width(), draft.choice((1, 3)), stride=2))


def grouped_convolution(draft: Draft, x: str) -> str:
    """A grouped convolution, widths chosen to fit."""
    groups = draft.divisor(draft.sizes(x)[1])
    return finished(draft, draft.conv(x, draft.width(groups, 24), draft.choice((1, 3)), groups=groups))


def depthwise_convolution(draft: Draft, x: str) -> str:
    """One filter for each channel, or two."""
    channels = draft.sizes(x)[1]
    multiplier = draft.choice((1, 2)) if channels <= 12 else 1
    return finished(draft, draft.conv(x, channels * multiplier, 3, groups=channels))


def transposed_convolution(draft: Draft, x: str) -> str:
    """A transposed convolution at the same size, or twice it."""
    channels, side = draft.sizes(x)[1:3]
    kernel, stride = draft.choice(((3, 1), (2, 2))) if side * 2 <= LARGEST_SIDE else (3, 1)
    groups = draft.choice((1, draft.divisor(channels)))
    width, bias, functional = draft.width(groups, 12), draft.flag(), draft.integer(0, 5) == 5
    name, out = draft.name("conv"), draft.name()
    made = Convolution(out, x, name, channels, width, kernel, stride, groups, bias, 2, True, functional)
    return draft.add(made)


def pool(draft: Draft, x: str) -> str:
    """Pooling by 2 where the image is large enough, else at the same size."""
    kinds = ("max", "average", "same") if min(draft.sizes(x)[2:]) >= 4 else ("same",)
    return draft.add(Pool(draft.name(), x, draft.choice(kinds), draft.name("pool") if draft.flag() else ""))


def resize(draft: Draft, x: str) -> str:
    """Twice the size, where that stays small."""
    if max(draft.sizes(x)[2:]) * 2 > LARGEST_SIDE:
        return pool(draft, x)
    return draft.add(Interpolate(draft.name(), x, draft.flag()))


def pixel_shuffle(draft: Draft, x: str) -> str:
    """A convolution to four times the channels and a pixel shuffle, or the inverse."""
    side = draft.sizes(x)[2]
    if side * 2 <= LARGEST_SIDE:
        return draft.add(PixelShuffle(draft.name(), draft.conv(x, 4 * draft.integer(2, 5))))
    if side % 2 == 0:
        return draft.add(PixelShuffle(draft.name(), draft.conv(x, draft.integer(2, 5)), inverse=True))
    return convolution(draft, x)


def reindexed(draft: Draft, x: str) -> str:
    """A slice, strided slice, flip, roll or index list over channels."""
    size = draft.sizes(x)[1]
    if size < 3:
        return convolution(draft, x)
    order = list(range(size))
    kind = draft.choice(("slice", "strided", "flip", "roll", "list"))
    if kind == "slice":
        start = draft.integer(0, size - 2)
        stop = draft.integer(start + 2, size)
        chosen, spelling = order[start:stop], f"{{x}}[:, {start}:{stop}]"
    elif kind == "strided":
        start = draft.integer(0, 1)
        chosen, spelling = order[start::2], f"{{x}}[:, {start}::2]"
    elif kind == "flip":
        chosen, spelling = order[::-1], "{x}.flip(1)"
    elif kind == "roll":
        shift = draft.integer(1, size - 1)
        chosen, spelling = order[-shift:] + order[:-shift], f"{{x}}.roll({shift}, 1)"
    else:
        chosen, spelling = [draft.integer(0, size - 1) for _ in range(draft.integer(2, size))], ""
    return draft.add(Reindex(draft.name(), x, 1, tuple(chosen), spelling))


def channel_pad(draft: Draft, x: str) -> str:
    """Zero channels before and after."""
    return draft.add(Pad(draft.name(), x, 1, draft.integer(0, 3), draft.integer(1, 4), 4))


def bare_tensor(draft: Draft, x: str) -> str:
    """A layer scale, channel bias or position table, as a parameter or a buffer."""
    _, channels, height, width = draft.sizes(x)
    shape = draft.choice(((channels, 1, 1), (1, channels, 1, 1), (1, channels, height, width), (1, 1, height, width)))
    table = draft.add(BareTensor(draft.name(), draft.name("table"), shape, draft.integer(0, 3) == 3))
    return draft.binary(x, table, draft.choice(("+", "*")))


def ramp(draft: Draft, x: str) -> str:
    """A constant made in forward, one number for each channel."""
    made = draft.add(Ramp(draft.name(), draft.sizes(x)[1], 2, x))
    return draft.binary(x, made, draft.choice(("*", "+")))


def scaled(draft: Draft, x: str) -> str:
    """Times a literal, or by the root of the number of channels the original has."""
    if draft.flag():
        return draft.add(Scale(draft.name(), x, float(draft.sizes(x)[1]) ** -0.5, divide_by_dim=1))
    return draft.add(Scale(draft.name(), x, 0.5))


def parametric_relu(draft: Draft, x: str) -> str:
    """``nn.PReLU`` with one slope or one per channel."""
    slopes = draft.choice((1, draft.sizes(x)[1]))
    return draft.add(PReLU(draft.name(), x, draft.name("act"), slopes))


SINGLE = (
    convolution,
    grouped_convolution,
    depthwise_convolution,
    finished,
    reindexed,
    channel_pad,
    bare_tensor,
    scaled,
    ramp,
    parametric_relu,
)
RESIZING = (strided_convolution, pool, resize, pixel_shuffle, transposed_convolution)
