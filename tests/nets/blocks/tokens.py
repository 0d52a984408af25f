"""Blocks from tokens ``(batch, length, channels)`` to tokens."""

from __future__ import annotations

from tests.nets.blocks.attention import attention
from tests.nets.blocks.composite import Block
from tests.nets.draft import Draft
from tests.nets.steps.attention_module import MultiheadAttention
from tests.nets.steps.copies import ExpandBatch
from tests.nets.steps.linear import Linear, Tie
from tests.nets.steps.norms import LayerNorm
from tests.nets.steps.pieces import Concat, Reindex
from tests.nets.steps.spatial import GLU
from tests.nets.steps.tensors import BareTensor


def norm(draft: Draft, x: str) -> str:
    """Layer norm or root mean square norm."""
    shape, affine, functional = (draft.sizes(x)[-1],), draft.flag(), draft.integer(0, 3) == 3
    return draft.add(LayerNorm(draft.name(), x, draft.name("norm"), shape, affine, draft.flag(), functional))


def perceptron(draft: Draft, x: str) -> str:
    """Two linear layers, added to the input or not."""
    y = draft.linear(draft.activation(draft.linear(x, draft.width())), draft.sizes(x)[-1])
    return draft.binary(x, y) if draft.flag() else y


def single_linear(draft: Draft, x: str) -> str:
    """One linear layer to another width."""
    return draft.linear(x, draft.width())


def attention_module(draft: Draft, x: str) -> str:
    """``nn.MultiheadAttention``, added to its input or not."""
    channels = draft.sizes(x)[2]
    heads, name = draft.divisor(channels), draft.name("attention")
    y = draft.add(MultiheadAttention(draft.name(), x, name, channels, heads, draft.flag()))
    return draft.binary(x, y) if draft.flag() else y


def gated(draft: Draft, x: str) -> str:
    """A gated linear unit: packed and split, ``F.glu``, or two layers."""
    hidden, dim = draft.width(largest=10), len(draft.sizes(x)) - 1
    kind = draft.choice(("two", "split", "glu"))
    if kind == "two":
        y = draft.binary(draft.activation(draft.linear(x, hidden)), draft.linear(x, hidden), "*")
    elif kind == "split":
        left, right = draft.split(draft.linear(x, 2 * hidden), dim, (hidden, hidden))
        y = draft.binary(draft.activation(left), right, "*")
    else:
        y = draft.add(GLU(draft.name(), draft.linear(x, 2 * hidden), dim))
    return draft.linear(y, draft.sizes(x)[-1])


def token_mixing(draft: Draft, x: str) -> str:
    """Linear layers across tokens."""
    length = draft.sizes(x)[1]
    y = draft.linear(draft.activation(draft.linear(draft.permute(x, 0, 2, 1), draft.width(largest=8))), length)
    return draft.binary(x, draft.permute(y, 0, 2, 1))


def table(draft: Draft, x: str) -> str:
    """A position embedding, or a scale or bias of each channel."""
    length, channels = draft.sizes(x)[1:]
    shape = draft.choice(((channels,), (1, length, channels), (length, channels), (length, 1)))
    made = draft.add(BareTensor(draft.name(), draft.name("table"), shape, draft.integer(0, 3) == 3))
    return draft.binary(x, made, draft.choice(("+", "*")))


def class_token(draft: Draft, x: str) -> str:
    """A learned token before the others."""
    token = draft.add(BareTensor(draft.name(), draft.name("token"), (1, 1, draft.sizes(x)[2])))
    token = draft.add(ExpandBatch(draft.name(), token, x, 3))
    return draft.add(Concat(draft.name(), (token, x), 1))


def convolved(draft: Draft, x: str) -> str:
    """A convolution along the tokens."""
    groups = draft.choice((1, draft.sizes(x)[2]))
    y = draft.conv(draft.permute(x, 0, 2, 1), draft.width(groups), draft.choice((1, 3)), groups=groups)
    return draft.permute(y, 0, 2, 1)


def tied(draft: Draft, x: str) -> str:
    """Two linear layers that share one weight."""
    channels = draft.sizes(x)[-1]
    names = draft.name("linear"), draft.name("linear")
    y = draft.activation(draft.add(Linear(draft.name(), x, names[0], channels, channels)))
    y = draft.add(Linear(draft.name(), y, names[1], channels, channels, bias=False))
    draft.add(Tie(*names))
    return y


def rotated(draft: Draft, x: str) -> str:
    """Halves of the channels exchanged and one negated, or even and odd channels taken apart, and added again."""
    channels = draft.sizes(x)[2]
    if channels % 2:
        return draft.add(Reindex(draft.name(), x, 1, tuple(range(draft.sizes(x)[1]))[::-1], "{x}.flip(1)"))
    half = channels // 2
    if draft.flag():
        left, right = draft.split(x, 2, (half, half))
        return draft.binary(x, draft.add(Concat(draft.name(), (draft.function(right, "negation"), left), 2)))
    even = draft.add(Reindex(draft.name(), x, 2, tuple(range(0, channels, 2)), "{x}[..., ::2]"))
    odd = draft.add(Reindex(draft.name(), x, 2, tuple(range(1, channels, 2)), "{x}[..., 1::2]"))
    return draft.add(Concat(draft.name(), (draft.binary(even, odd), odd), 2))


TOKENS: tuple[Block, ...] = (
    perceptron,
    single_linear,
    norm,
    attention,
    attention,
    attention_module,
    gated,
    token_mixing,
    table,
    class_token,
    convolved,
    tied,
    rotated,
)
