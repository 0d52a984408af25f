"""Numbers of a model that its forward does not read, but a user or a library: ``num_features``, tables of stages."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import fx, nn

from fxprune.keeping.slots import Pairs, Slot
from fxprune.rules import is_leaf
from fxprune.rules.call import Call
from fxprune.rules.ops import CONTRACTIONS
from fxprune.util.paths import ModelPaths, is_held

Calls = Mapping[fx.Node, Call]
SizesOf = Callable[[Iterable[fx.Node]], Pairs]


class Traffic:
    """Full and kept sizes of the values that go through a module, by its path."""

    def __init__(self, calls: Calls, nodes: Iterable[fx.Node], paths: ModelPaths, sizes_of: SizesOf) -> None:
        self._calls, self._nodes, self._sizes_of = calls, list(nodes), sizes_of
        self._between: dict[str, set[fx.Node]] = defaultdict(set)
        for node in self._nodes:
            for user in node.users:
                path = _common(_path(node), _path(user))
                self._between[path].add(node)
                while path and isinstance(paths.module(path), (nn.Sequential, nn.ModuleList)):
                    path = path.rpartition(".")[0]
                    self._between[path].add(node)

    def passed(self, path: str) -> Pairs:
        """Sizes of what a module passes between its children."""
        return self._sizes_of(self._between[path])

    def returned(self, path: str) -> Pairs:
        """Sizes of what a module returns."""
        inside = self._inside(path)
        return self._sizes_of(node for node in inside if not all(user in inside for user in node.users))

    def received(self, path: str) -> Pairs:
        """Sizes of what a module reads."""
        inside = self._inside(path)
        return self._sizes_of({given for node in inside for given in node.all_input_nodes if given not in inside})

    def read_last(self) -> Iterator[Pairs]:
        """Sizes of what the last layer with weights (the classifier, as a rule) reads, and the modules around it."""
        calls = (self._calls.get(node) for node in reversed(self._nodes))
        for call in itertools.islice((call for call in calls if call and call.name in CONTRACTIONS), 1):
            yield self._sizes_of([call.arguments["input"]])
            path = _path(call.node)
            while path:
                yield self.received(path)
                path = path.rpartition(".")[0]

    def _inside(self, path: str) -> dict[fx.Node, None]:
        return dict.fromkeys(node for node in self._nodes if f"{_path(node)}.".startswith(f"{path}."))


def columns_of_sizes(model: nn.Module, traffic: Traffic) -> Iterator[list[tuple[Slot, int]]]:
    """Numbers of one kind with their new sizes, where only one new size is possible for each.

    A row of a table that names a part of the module (``{"num_chs": 64, "reduction": 8, "module": "layer2"}``) is
    compared with the sizes that this part returns, an entry of a row of numbers with those that the parts at this place
    of the module's lists read and return, any other number with those that the module reads and its children pass on.
    Where several of these fit a number of the model itself, its last layer decides, as for ``num_features``.
    """
    for path, module in model.named_modules():
        columns = [] if is_leaf(module) else list(_columns_of(module, path))
        own = [traffic.passed(path) | (traffic.received(path) if path else set())] if columns else []
        for column in columns:
            new = [_new_sizes(slot, own, module, traffic) for slot in column]
            if all(len(found) == 1 for found in new):
                yield [(slot, found.pop()) for slot, found in zip(column, new, strict=True)]


def _new_sizes(slot: Slot, own: list[Pairs], module: nn.Module, traffic: Traffic) -> set[int]:
    if slot.index is not None:
        at_place = (traffic.received(part) | traffic.returned(part) for part in _parts_at(slot, module))
        each = [sizes for sizes in (_fitting(slot, pairs) for pairs in at_place) if sizes]
        return set.intersection(*each) if each else set()
    named = _parts_named(slot, module)
    if named:
        found = _fitting(slot, *map(traffic.returned, named))
        return found - {slot.value} or found  # a height may be as large as a part's width
    found = _fitting(slot, *own)
    if len(found) > 1 and not slot.owner:
        found = next(filter(None, (_fitting(slot, pairs) for pairs in traffic.read_last())), found)
    return found


def _fitting(slot: Slot, *pairs: Pairs) -> set[int]:
    return {new for old, new in itertools.chain(*pairs) if old == slot.value}


def _path(node: fx.Node) -> str:
    return str(node.target if node.op == "call_module" else node.meta.get("module", ""))


def _common(a: str, b: str) -> str:
    """The path of the innermost module that contains both."""
    both = zip(a.split("."), b.split("."), strict=False)
    return ".".join(x for x, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))


def _parts_at(slot: Slot, module: nn.Module) -> list[str]:
    """The paths of the parts at the place of an entry, in the lists of parts that are long enough."""
    lists = [(n, list(p._modules)) for n, p in module.named_children() if isinstance(p, (nn.Sequential, nn.ModuleList))]
    at = slot.index or 0
    return [f"{slot.owner}.{name}.{keys[at]}".strip(".") for name, keys in lists if len(keys) > at]


def _parts_named(slot: Slot, module: nn.Module) -> list[str]:
    """The paths of the parts that the row of a table names."""
    if slot.table is vars(module):
        return []
    names = [name for name in slot.table.values() if isinstance(name, str) and name and is_held(module, name)]
    return [f"{slot.owner}.{name}".strip(".") for name in names]


def _columns_of(module: nn.Module, owner: str) -> Iterator[list[Slot]]:
    """Each attribute by itself, each row of numbers, and each column of a list of dicts (the stages of a backbone)."""
    for key, value in vars(module).items():
        if type(value) is int:
            yield [Slot(owner, (key,), vars(module), key)]
        elif type(value) in (list, tuple) and value and all(type(entry) is int for entry in value):
            yield [Slot(owner, (key, str(i)), vars(module), key, i) for i in range(len(value))]
        elif type(value) in (list, tuple) and value and all(type(row) is dict for row in value):
            for name, entry in value[0].items():
                if type(entry) is int and all(type(row.get(name)) is int for row in value):
                    yield [Slot(owner, (key, str(i), str(name)), row, name) for i, row in enumerate(value)]
