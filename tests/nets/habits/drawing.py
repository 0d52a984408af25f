"""Networks with habits: one of each kind alone, or several between arbitrary blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tests.nets.coupling import ALIVE
from tests.nets.draft import Draft, SeededChooser
from tests.nets.habits.habit import ANY, Habit, Habitual
from tests.nets.habits.inspecting import CACHES, NAMES, PASSED, QUESTIONS
from tests.nets.habits.leaking import BRANCHES, SIZES
from tests.nets.habits.outputs import STYLES
from tests.nets.habits.training import GRADIENTS, MODES, STATE, TIES
from tests.nets.specification import Specification
from tests.nets.steps.unusual import HeadsInBatch, Recurrent, Squeezed

HABITS: dict[str, dict[str, Habit]] = {
    "modes": MODES,
    "state": STATE,
    "gradients": GRADIENTS,
    "ties": TIES,
    "questions": QUESTIONS,
    "passed": PASSED,
    "caches": CACHES,
    "names": NAMES,
    "sizes": SIZES,
    "branches": BRANCHES,
}

# The dim of each rank that ``$n`` is the size of.
SIZED = {4: 3, 3: 1, 2: 0}
# Seeds that draw merged heads and recurrent layers of every kind, with a state and without.
UNUSUAL_SEEDS = 24


def put(draft: Draft, x: str, habit: Habit) -> str:
    """Add a habit behind a value."""
    sizes = draft.sizes(x)
    channels = sizes[1] if len(sizes) == 4 else sizes[-1]
    layered = any(dims in "ok" for _, dims in habit.tensors)
    made = draft.width() if layered else channels
    return draft.add(Habitual(draft.name(), x, draft.name("own"), habit, channels, made, len(sizes)))


def any_habit(draft: Draft, x: str) -> str:
    """Draw a habit that takes the value, or one of the steps that are as unusual."""
    rank = len(draft.sizes(x))
    kind = draft.choice((*HABITS, "unusual"))
    if kind == "unusual":
        return unusual(draft, x)
    # A number that the forward reads off a dim keeps what it was when the dim is cut, which the twin would not do.
    sized = rank == 2 or all(draft.net.root(cell) == ALIVE for cell in draft.net.values[x][SIZED[rank]])
    fits = [habit for habit in HABITS[kind].values() if rank in habit.ranks and (sized or "$n" not in habit.forward)]
    return put(draft, x, draft.choice(fits))


def unusual(draft: Draft, x: str) -> str:
    """A recurrent layer or merged heads over tokens, ``squeeze()`` of an image; rows stay as they are."""
    sizes = draft.sizes(x)
    if len(sizes) == 4:
        return draft.add(Squeezed(draft.name(), x))
    if len(sizes) == 2:
        return draft.linear(x, draft.width())
    if draft.flag():
        heads = draft.divisor(sizes[2])
        return draft.add(HeadsInBatch(draft.name(), x, draft.name("heads"), heads, sizes[2] // heads))
    hidden = draft.width(largest=6)
    state = draft.input((hidden,)) if draft.integer(0, 2) == 2 else ""
    kind = draft.choice(tuple(Recurrent.GATES))
    return draft.add(Recurrent(draft.name(), x, draft.name("recurrent"), kind, sizes[2], hidden, state))


def single_habit(habit: Habit, rank: int, style: str = "single", seed: int = 0) -> Specification:
    """Return a network of one habit between two layers in front and one behind; ``rank`` is that of what it takes."""
    return single(rank, lambda draft, x: put(draft, x, habit), style, seed)


def single(rank: int, block: Callable[[Draft, str], str], style: str = "single", seed: int = 0) -> Specification:
    """Return a network of one block between two layers in front and one behind."""
    draft = Draft(SeededChooser(seed))
    widen = draft.conv if rank == 4 else draft.linear
    x = widen(draft.input({4: (2, 4, 4), 3: (4, 3), 2: (3,)}[rank]), 5)
    x = block(draft, widen(draft.function(x, "leaky_relu"), 6))
    out = draft.conv(x, 3) if len(draft.sizes(x)) == 4 else draft.linear(x, 3)
    return Specification(tuple(draft.inputs), tuple(draft.steps), (out,), style, seed)


def singles() -> dict[str, Callable[[], Specification]]:
    """Return a network for every habit at every rank it takes, for every style of output and unusual step, by name."""
    nets: dict[str, Callable[[], Specification]] = {
        f"{kind}: {name}, rank {rank}": functools.partial(single_habit, habit, rank)
        for kind, table in HABITS.items()
        for name, habit in table.items()
        for rank in habit.ranks
    }
    plain = HABITS["modes"]["branch_on_training"]
    for style in STYLES:
        nets |= {f"outputs: {style}, rank {rank}": functools.partial(single_habit, plain, rank, style) for rank in ANY}
    nets["unusual: squeeze, rank 4"] = functools.partial(single, 4, unusual)
    nets |= {
        f"unusual: {seed}, rank 3": functools.partial(single, 3, unusual, "single", seed)
        for seed in range(UNUSUAL_SEEDS)
    }
    return nets
