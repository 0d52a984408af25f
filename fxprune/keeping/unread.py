"""Numbers of a model that its forward does not read, but a user or a library: ``num_features``, tables of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from fxprune.keeping.slots import Pairs, Slot
from fxprune.rules import is_leaf
from fxprune.util.paths import is_held

# By the path of a module: full and kept sizes of what it passes on.
SizesOf = Callable[[str], Pairs]


def columns_of_sizes(model: nn.Module, passed: SizesOf, returned: SizesOf) -> Iterator[list[tuple[Slot, int]]]:
    """Numbers of one kind with their new sizes, where only one new size is possible for each.

    A row of a table that names a part of the module (``{"num_chs": 64, "reduction": 8, "module": "layer2"}``) is
    compared with the sizes that this part returns, any other number with those passed between the module's children.
    """
    for path, module in model.named_modules():
        columns = [] if is_leaf(module) else list(_columns_of(module, path))
        own = passed(path) if columns else set()
        for column in columns:
            new = [_new_sizes(slot, own, [returned(part) for part in _parts_named(slot, module)]) for slot in column]
            if all(len(found) == 1 for found in new):
                yield [(slot, found.pop()) for slot, found in zip(column, new, strict=True)]


def _new_sizes(slot: Slot, own: Pairs, of_parts: list[Pairs]) -> set[int]:
    found = {new for pairs in of_parts or [own] for old, new in pairs if old == slot.value}
    return (found - {slot.value} or found) if of_parts else found  # a height may be as large as a part's width


def _parts_named(slot: Slot, module: nn.Module) -> list[str]:
    """The paths of the parts that the row of a table names."""
    if slot.table is vars(module):
        return []
    names = [name for name in slot.table.values() if isinstance(name, str) and name and is_held(module, name)]
    return [f"{slot.owner}.{name}".strip(".") for name in names]


def _columns_of(module: nn.Module, owner: str) -> Iterator[list[Slot]]:
    """Each attribute by itself, and each column of a list of dicts (the stages of a backbone)."""
    for key, value in vars(module).items():
        if type(value) is int:
            yield [Slot(owner, (key,), vars(module), key)]
        elif type(value) in (list, tuple) and value and all(type(row) is dict for row in value):
            for name, entry in value[0].items():
                if type(entry) is int and all(type(row.get(name)) is int for row in value):
                    yield [Slot(owner, (key, str(i), str(name)), row, name) for i, row in enumerate(value)]
