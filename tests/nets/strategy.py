"""Arbitrary networks: drawn by hypothesis, or by a seed for long runs."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.nets.blocks import layouts
from tests.nets.blocks.composite import COMPOSITE, Block
from tests.nets.blocks.crossed import CROSSED, UNALIGNED
from tests.nets.blocks.image import RESIZING, SINGLE
from tests.nets.blocks.tokens import TOKENS
from tests.nets.blocks.vector import VECTOR
from tests.nets.draft import Chooser, Draft, SeededChooser
from tests.nets.habits.drawing import any_habit
from tests.nets.habits.outputs import STYLES
from tests.nets.specification import Specification
from tests.nets.steps.linear import Embedding
from tests.nets.steps.pieces import Concat
from tests.nets.steps.pointwise import Binary

MOST_STEPS = 48
MOST_BLOCKS = 5

BLOCKS: dict[int, tuple[Block, ...]] = {
    4: (*SINGLE, *COMPOSITE, *RESIZING, *CROSSED),
    3: TOKENS,
    2: VECTOR,
}
CHANGES: dict[int, tuple[Block, ...]] = {
    4: (layouts.image_to_tokens, layouts.image_to_vector),
    3: (layouts.tokens_to_vector, layouts.tokens_to_image),
    2: (layouts.vector_to_image, layouts.vector_to_tokens),
}


def write(chooser: Chooser, habit: Block | None = None, most_blocks: int = MOST_BLOCKS) -> Specification:
    """Write one network: stem, blocks, maybe another layout and more blocks, heads; ``habit`` behind every block."""
    draft = Draft(chooser)
    x = _stem(draft)
    values, unaligned = [x], False
    for _ in range(draft.integer(1, 1 + draft.integer(0, 1))):
        for _ in range(draft.integer(1, most_blocks)):
            if len(draft.steps) < MOST_STEPS:
                block = draft.choice(BLOCKS[len(draft.sizes(x))])
                unaligned |= block in UNALIGNED
                x = block(draft, x)
                values.append(x)
            if habit is not None:
                x = habit(draft, x)
                values.append(x)
        if draft.flag():
            x = draft.choice(CHANGES[len(draft.sizes(x))])(draft, x)
            values.append(x)
    outputs, style = _heads(draft, x, values)
    if habit is not None and draft.integer(0, 2) == 2:
        style = draft.choice(tuple(STYLES))
    return Specification(tuple(draft.inputs), tuple(draft.steps), outputs, style, draft.integer(0, 99), unaligned)


def _stem(draft: Draft) -> str:
    """Draw the inputs and bring them to the first wide value."""
    kind = draft.choice(("image", "image", "image", "two_images", "tokens", "words", "vector", "image_and_vector"))
    if kind == "tokens":
        return draft.linear(draft.input((draft.integer(2, 5), draft.integer(2, 6))), draft.width())
    if kind == "words":
        x = draft.input((draft.integer(2, 5),), vocabulary=7)
        return draft.add(Embedding(draft.name(), x, draft.name("embedding"), 7, draft.width()))
    if kind == "vector":
        return draft.linear(draft.input((draft.integer(2, 6),)), draft.width())
    side, width = draft.choice((4, 6)), draft.width()
    x = draft.conv(draft.input((draft.integer(1, 3), side, side)), width, 3)
    if kind == "image_and_vector":
        condition = draft.linear(draft.input((draft.integer(2, 4),)), width)
        return draft.binary(x, draft.reshape(condition, (1, (width, 1, 1)), style="literal"), draft.choice(("+", "*")))
    return _with_second_image(draft, x) if kind == "two_images" else x


def _with_second_image(draft: Draft, x: str) -> str:
    """Join a second image by a sum, a product or a concat."""
    _, width, side, _ = draft.sizes(x)
    other = draft.input((draft.integer(1, 3), side, side))
    joined = draft.choice(("+", "*", "concat", "concat_input"))
    if joined == "concat_input":
        return draft.add(Concat(draft.name(), (x, other), 1))
    if joined == "concat":
        return draft.add(Concat(draft.name(), (x, draft.conv(other, draft.width(largest=8))), 1))
    return draft.add(Binary(draft.name(), x, draft.conv(other, width), joined))


def _heads(draft: Draft, x: str, values: list[str]) -> tuple[tuple[str, ...], str]:
    """Draw the outputs: mostly one classifier or map, sometimes several values as a tuple or a dict."""
    style = draft.choice(("single", "single", "tuple", "dict"))
    outputs = [_head(draft, x)]
    if style != "single":
        outputs += [_head(draft, draft.choice(values[::-1])) for _ in range(draft.integer(0, 2))]
    return tuple(dict.fromkeys(outputs)), style


def _head(draft: Draft, x: str) -> str:
    """A layer of a few outputs, or now and then the value itself, whose channels all stay then."""
    if draft.integer(0, 9) == 9:
        return x
    if len(draft.sizes(x)) == 4 and draft.flag():
        return draft.conv(x, draft.integer(1, 4))
    return draft.linear(_as_rows(draft, x), draft.integer(1, 5))


def _as_rows(draft: Draft, x: str) -> str:
    if len(draft.sizes(x)) == 4:
        return layouts.image_to_vector(draft, x)
    return layouts.tokens_to_vector(draft, x) if len(draft.sizes(x)) == 3 and draft.flag() else x


class _DrawnChooser:
    """Choices drawn by hypothesis."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high)) if low < high else low


@st.composite
def specifications(draw: st.DrawFn, habits: bool = False) -> Specification:
    """Strategy of arbitrary networks; a failing one prints as the source of an ``nn.Module``."""
    return write_with_habits(_DrawnChooser(draw)) if habits else write(_DrawnChooser(draw))


def write_with_habits(chooser: Chooser) -> Specification:
    """Write one network of fewer blocks with habits between them."""
    return write(chooser, any_habit, most_blocks=2)


def single_block(rank: int, block: Block, seed: int) -> Specification:
    """Return a network of one block between a stem and a head; ``rank`` is that of the values the block takes."""
    draft = Draft(SeededChooser(seed))
    if rank == 4:
        x = draft.conv(draft.input((2, 4, 4)), draft.width(), 3)
    else:
        x = draft.linear(draft.input((4, 3) if rank == 3 else (3,)), draft.width())
    x = block(draft, x)
    out = draft.conv(x, 3) if rank == 4 else draft.linear(x, 3)
    return Specification(tuple(draft.inputs), tuple(draft.steps), (out,), seed=seed)


def random_specification(seed: int) -> Specification:
    """Return the network of a seed."""
    return write(SeededChooser(seed))
