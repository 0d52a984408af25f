"""Multi-head attention over tokens ``(batch, length, channels)``, spelled the ways that models spell it."""

from __future__ import annotations

from tests.nets.draft import Draft
from tests.nets.steps.contractions import MatMul, ScaledDotProduct, Softmax
from tests.nets.steps.copies import Expand, Repeat
from tests.nets.steps.pieces import Select, Unbind
from tests.nets.steps.pointwise import Scale
from tests.nets.steps.shapes import Reshape, Segment, Unsqueeze


def packed_by_reshape(draft: Draft, x: str, heads: int, width: int) -> list[str]:
    """One linear layer, one reshape to ``(3, heads, width)``, and the three taken apart."""
    length = draft.sizes(x)[1]
    packed = draft.reshape(draft.linear(x, 3 * heads * width), (1, (length,)), (1, (3, heads, width)))
    packed = draft.permute(packed, 2, 0, 3, 1, 4)
    if draft.flag():
        return [draft.add(Select(draft.name(), packed, 0, part, draft.flag())) for part in range(3)]
    names = tuple(draft.name() for _ in range(3))
    draft.add(Unbind(names, packed, 0))
    return list(names)


def by_heads(draft: Draft, x: str, heads: int, width: int) -> str:
    """``(batch, length, heads * width)`` to ``(batch, heads, length, width)``."""
    split = draft.reshape(x, (1, (draft.sizes(x)[1],)), (1, (heads, width)))
    return draft.permute(split, 0, 2, 1, 3)


def packed_by_chunk(draft: Draft, x: str, heads: int, width: int) -> list[str]:
    """One linear layer cut in three, each part then by heads."""
    parts = draft.split(draft.linear(x, 3 * heads * width), 2, [heads * width] * 3)
    return [by_heads(draft, part, heads, width) for part in parts]


def separate(draft: Draft, x: str, heads: int, width: int) -> list[str]:
    """Three linear layers, the value's width its own."""
    widths = (width, width, draft.choice((width, width + 1)))
    return [by_heads(draft, draft.linear(x, heads * size), heads, size) for size in widths]


def grouped_keys(draft: Draft, x: str, heads: int, width: int) -> list[str]:
    """Fewer heads of keys and values than of queries, copied by repeat_interleave or expand."""
    copies = draft.integer(2, 3)
    query = by_heads(draft, draft.linear(x, heads * copies * width), heads * copies, width)
    keys = [by_heads(draft, draft.linear(x, heads * width), heads, width) for _ in range(2)]
    if draft.flag():
        return [query, *(draft.add(Repeat(draft.name(), key, 1, copies, 4, interleave=True)) for key in keys)]
    return [query, *(_expanded_heads(draft, key, copies) for key in keys)]


def _expanded_heads(draft: Draft, x: str, copies: int) -> str:
    _, heads, length, width = draft.sizes(x)
    wide = draft.add(Unsqueeze(draft.name(), x, 2))
    wide = draft.add(Expand(draft.name(), wide, 2, copies, 5))
    return draft.reshape(wide, (2, (heads * copies,)), (1, (length,)), (1, (width,)), style="literal")


def fused(draft: Draft, query: str, key: str, value: str) -> str:
    """``F.scaled_dot_product_attention``."""
    width = draft.sizes(query)[-1]
    return draft.add(ScaledDotProduct(draft.name(), query, key, value, width, explicit_scale=draft.flag()))


def explicit(draft: Draft, query: str, key: str, value: str) -> str:
    """Two products and a softmax, the query scaled by a literal or by the root of its last size."""
    width, dim = draft.sizes(query)[-1], len(draft.sizes(query)) - 1
    query = draft.add(Scale(draft.name(), query, width**-0.5, dim if draft.flag() else None))
    scores = draft.add(MatMul(draft.name(), query, key, transpose_right=True, einsum=draft.flag()))
    return draft.add(MatMul(draft.name(), draft.add(Softmax(draft.name(), scores, dim)), value, einsum=draft.flag()))


def batched_heads(draft: Draft, query: str, key: str, value: str) -> str:
    """Heads moved into the batch, attended there and moved back."""
    heads = draft.sizes(query)[1]
    merged = [_merge_heads(draft, part) for part in (query, key, value)]
    out = explicit(draft, *merged)
    _, length, width = draft.sizes(out)
    segments = (Segment(1, (1, heads)), Segment(1, (length,)), Segment(1, (width,)))
    return draft.add(Reshape(draft.name(), out, segments))


def _merge_heads(draft: Draft, x: str) -> str:
    _, heads, length, width = draft.sizes(x)
    segments = (Segment(2, (heads,)), Segment(1, (length,)), Segment(1, (width,)))
    return draft.add(Reshape(draft.name(), x, segments, draft.choice(("literal", "flatten"))))


def across_channels(draft: Draft, query: str, key: str, value: str) -> str:
    """Attention between channels of a head instead of between tokens."""
    query, key, value = (draft.permute(part, 0, 1, 3, 2) for part in (query, key, value))
    scores = draft.add(MatMul(draft.name(), query, key, transpose_right=True))
    mixed = draft.add(MatMul(draft.name(), draft.add(Softmax(draft.name(), scores, 3)), value))
    return draft.permute(mixed, 0, 1, 3, 2)


def attention(draft: Draft, x: str) -> str:
    """Multi-head self-attention and its output layer, added to its input or not."""
    _, length, channels = draft.sizes(x)
    heads, width = draft.integer(1, 4), draft.integer(2, 4)
    query, key, value = draft.choice((separate, packed_by_chunk, packed_by_reshape, grouped_keys))(
        draft, x, heads, width
    )
    same_width = draft.sizes(query)[-1] == draft.sizes(value)[-1]
    how = draft.choice((fused, explicit, batched_heads, *((across_channels,) if same_width else ())))
    out = draft.permute(how(draft, query, key, value), 0, 2, 1, 3)
    heads, width = draft.sizes(out)[2:]
    y = draft.linear(draft.reshape(out, (1, (length,)), (2, (heads * width,))), channels)
    return draft.binary(x, y) if draft.flag() else y
