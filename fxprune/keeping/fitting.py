"""A copy of a model at kept widths, of the same class, whose attributes have the new sizes.

The copy's own forward is traced like the model's. Equal calls have equal node names in the two traces, which shows the
first call whose result does not have the kept sizes, and the module whose code makes it. Attributes of that module, of
modules around it and of their configurations are tried with the new size: a change is kept if the forward gets further.
If no attribute determines a width, it is fixed in the code, and its group keeps all channels (it is held).
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.analyzer import flat_axes
from fxprune.analysis.groups import Group, PinnedWidth
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import kept_mask
from fxprune.axes.expressions import Axis, Channels, variables
from fxprune.capture.builtin_calls import remembering
from fxprune.capture.decisions import are_complete, asked_at
from fxprune.capture.objects import CopiedObject
from fxprune.capture.reachable import reachable, restored
from fxprune.capture.tracing import attempt
from fxprune.errors import PlanError
from fxprune.keeping.slots import Masks, Pairs, Slot, sizes, slots_of
from fxprune.keeping.unread import Traffic, columns_of_sizes
from fxprune.rewriting import Certificate, rewrite_certified
from fxprune.rewriting.slicing import kept_indices, sliced
from fxprune.rules import is_leaf
from fxprune.rules.ops import named_tensors
from fxprune.util.copies import deep_copy
from fxprune.util.paths import ModelPaths, attribute, is_held

Held = dict[Group, PinnedWidth]
# The attributes that hold sizes, by class: found once for all modules of the class.
Rules = dict[tuple[type, tuple[str, ...]], None]
_MOST_PAIRS = 24  # pairs of attributes that are tried together


def fitted(
    graph: ChannelGraph,
    model: nn.Module,
    masks: Masks,
    pruned: nn.Module,
    certificates: Sequence[Certificate],
    rules: Rules,
) -> tuple[nn.Module, Held]:
    """A copy at the widths of a plan, and the groups held whole, because no attribute determines their width.

    Raises PlanError: values may lead to code that no graph shows.
    """
    held: Held = {}
    graphs = [each.graph for each in (graph.captured, *graph.captured.specializations)]
    if not are_complete(graphs):
        raise PlanError(
            f"keep_class: values may lead from {asked_at(graphs[0])} to code that no graph shows, and that may need "
            "the old widths: pass other_samples that take its other branches, or compile without keep_class"
        )
    while True:
        copy = narrowed(graph, model, masks, pruned)
        if graph.captured.opaque:
            return copy, held
        # The objects that the copy's code can reach are found, and changed, once for all tries.
        with restored(copy), remembering(reachable(copy).functions):
            more = Fit(graph, copy, masks, certificates[0], rules).solve()
        if not more:
            return copy, held
        held |= more
        masks = {**masks, **{group.variable: group.without(()) for group in more}}
        pruned, certificates = rewrite_certified(graph, model, masks)


def in_words(held: Held) -> str:
    """The held widths and the reasons, in words."""
    return "; ".join(f"{pin.tensor} dim {pin.dim}: {pin.reason} ({pin.cause})" for pin in held.values())


def narrowed(graph: ChannelGraph, model: nn.Module, masks: Masks, pruned: nn.Module) -> nn.Module:
    """A copy of the model with the kept entries of its tensors, and layers with the pruned graph's attributes."""
    kept: dict[int, Any] = {}
    for name, tensor in named_tensors(model, ""):
        axes = graph.tensors.get(graph.captured.first_name(name))
        kept.setdefault(id(tensor), () if axes is None else kept_indices(axes, masks))
    copy = deep_copy(model, lambda tensor: sliced(tensor, kept.get(id(tensor), ())))
    for path, part in copy.named_modules():
        if path and is_leaf(part) and is_held(pruned, path):
            _take_attributes(part, attribute(pruned, path))
    return copy


def _take_attributes(part: nn.Module, narrow: nn.Module) -> None:
    own = vars(part)
    for name, value in vars(narrow).items():
        if isinstance(value, (int, tuple)) and name in own and name != "training" and own[name] != value:
            own[name] = value


@dataclass
class Fit:
    """The search for the attributes of one copy."""

    graph: ChannelGraph
    copy: nn.Module
    masks: Masks
    certificate: Certificate
    rules: Rules
    order: dict[str, tuple[int, fx.Node]] = field(init=False)
    changed: set[Any] = field(default_factory=set)  # slots that are set, as a new number may equal another's old one

    def __post_init__(self) -> None:
        nodes = self.certificate.captured.graph.nodes
        self.order = {node.name: (number, node) for number, node in enumerate(nodes)}
        self.paths = ModelPaths(self.copy)
        self.by_module: dict[str, list[fx.Node]] = defaultdict(list)
        for node in nodes:
            self.by_module[node.meta.get("module", "")].append(node)

    def solve(self) -> Held:
        """Set attributes until the forward has the kept sizes; returns the groups of the call at which that fails."""
        for cls, place in self.rules:
            self._set_throughout_class(cls, place)
        at, node = self._reached()
        while node is not None:
            further = self._advance(at, node)
            if further is None:
                return self._groups_that_fail(node)
            at, node = further
        self._set_unread()
        return self._unfit_for_attention()

    def _set_unread(self) -> None:
        """Set numbers that the forward does not read (``num_features``)."""
        nodes = [node for _, node in self.order.values()]
        columns = columns_of_sizes(self.copy, Traffic(self.graph.calls, nodes, self.paths, self._sizes_of))
        self._set_unhindered([c for c in columns if not any(slot.identity in self.changed for slot, _ in c)])

    def _set_unhindered(self, columns: list[list[tuple[Slot, int]]]) -> None:
        """Set the numbers of columns, but for those with which the forward is another: they are searched by halves."""
        changes = [(slot, slot.value, new) for column in columns for slot, new in column]
        for slot, _, new in changes:
            slot.set(new)
        if not changes or self._reached()[1] is None:
            return
        for slot, old, _ in changes:
            slot.set(old)
        half = len(columns) // 2
        for part in (columns[:half], columns[half:]) if half else ():
            self._set_unhindered(part)

    def _sizes_of(self, nodes: Iterable[fx.Node]) -> Pairs:
        axes = (self.graph.solver.resolve(axis) for axis in self._axes_of(nodes))
        return {pair for axis in axes for pair in sizes(axis, self.masks)}

    def _unfit_for_attention(self) -> Held:
        """The groups that torch's attention cannot narrow: its own forward requires one width throughout."""
        found: Held = {}
        for path, module in self.copy.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                width = module.out_proj.weight.shape[0]
                weights = [w for w in (module.in_proj_weight, module.q_proj_weight) if w is not None]
                if module.out_proj.weight.shape[1] == width and all(w.shape[0] in (width, 3 * width) for w in weights):
                    _set_width(module, width)
                else:
                    names = {name for name in self.graph.tensors if name.startswith(f"{path}.")}
                    for group in self.graph.groups:
                        if not self.masks[group.variable].all() and names & {m.tensor for m in group.members}:
                            found[group] = self._pin(self.by_module[path][0], group)
        return found

    def _reached(self) -> tuple[int, fx.Node | None]:
        """The first node at which the copy's forward departs from the kept sizes; None if it never does."""
        traced, error = attempt(self.copy, self.certificate.captured)
        last, seen = -1, set()
        for narrow in traced.nodes:
            if narrow.name not in self.order:
                continue
            number, node = self.order[narrow.name]
            if not _is_call(narrow) and str(narrow.args) != str(node.args):
                continue  # a question about other sizes: of the arguments of a call that fails or may fail
            if not self._fits(node, narrow):
                return number, node
            last = max(last, number)
            seen.add(narrow.name)
        if error is not None:
            rest = [node for number, node in self.order.values() if number > last and node.op != "get_attr"]
            with_source = [node for node in rest if node.meta.get("source")]
            calls = [node for node in with_source if not isinstance(node.meta.get("val"), (int, float))]
            return last + 1, (calls or with_source or rest)[0]
        missing = [(number, node) for number, node in self.order.values() if node.name not in seen and _is_call(node)]
        return missing[0] if missing else (len(self.order), None)

    def _fits(self, node: fx.Node, narrow: fx.Node) -> bool:
        """Whether a call is the same, returns the kept sizes and has the number arguments of the pruned graph."""
        if node.op != narrow.op or not (node.target == narrow.target or isinstance(node.target, CopiedObject)):
            return False
        if node in self.graph.axes and not self._has_sizes(self.graph.axes[node], narrow.meta.get("val")):
            return False
        if "constant" in narrow.meta and not self._has_values(str(node.target), narrow.meta["constant"]):
            return False
        image = self.certificate.images.get(node)
        if not isinstance(image, fx.Node) or (image.op, image.target) != (narrow.op, narrow.target):
            return True
        if image.kwargs.keys() != narrow.kwargs.keys():  # a default that depends on a width, such as attention's scale
            return False
        values = [(image.args, narrow.args), *((image.kwargs[name], narrow.kwargs[name]) for name in image.kwargs)]
        both = [(_leaves(given), _leaves(own)) for given, own in values]
        return all(len(given) != len(own) or all(map(self._agree, given, own)) for given, own in both)

    @cached_property
    def _numbers(self) -> set[fx.Node]:
        """The pruned graph's nodes that give numbers."""
        images = self.certificate.images.items()
        numbers = (int, float, torch.SymInt)
        return {n for full, n in images if isinstance(n, fx.Node) and isinstance(full.meta.get("val"), numbers)}

    def _agree(self, given: Any, own: Any) -> bool:
        """Whether an argument of the copy's call equals the number in the pruned graph, if that has one there."""
        if isinstance(given, fx.Node) and given in self._numbers:  # a literal there is that of another branch
            return isinstance(own, fx.Node) or own == -1
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            return True
        if isinstance(own, fx.Node):
            own = own.meta.get("val")
            own = operator.index(own) if isinstance(own, (int, torch.SymInt)) else own
        return not isinstance(own, (int, float)) or own == given or own == -1 or given == -1

    def _has_sizes(self, axes: Any, value: Any) -> bool:
        if isinstance(value, torch.Tensor) and isinstance(axes, tuple):
            return len(axes) == value.dim() and all(self._kept(a) == n for a, n in zip(axes, value.shape, strict=True))
        if isinstance(value, (list, tuple)) and isinstance(axes, (list, tuple)):
            return len(axes) == len(value) and all(map(self._has_sizes, axes, value))
        return True

    def _has_values(self, name: str, own: torch.Tensor) -> bool:
        """Whether a constant of the copy's forward is the kept part of the model's (frequencies by a width)."""
        full = self.graph.constants[name]
        expected = sliced(full, kept_indices(self.graph.tensors[name], self.masks))
        return own.is_meta or full.is_meta or torch.allclose(own, expected, equal_nan=True)

    def _kept(self, axis: Axis) -> int:
        return int(kept_mask(self.graph.solver.resolve(axis), self.masks).sum())

    def _advance(self, at: int, node: fx.Node) -> tuple[int, fx.Node | None] | None:
        """Change attributes so that the forward gets further than ``node``; None if none achieves that."""
        for changes in self._candidates(at, node):
            before = [slot.value for slot, _ in changes]
            for slot, new in changes:
                slot.set(new)
            reached = self._reached()
            if reached[1] is None or reached[0] > at:
                for slot, _ in changes:
                    cls = type(self.paths.module(slot.owner))
                    self.rules[cls, slot.place] = None
                    self.changed.add(slot.identity)
                    self._set_throughout_class(cls, slot.place)
                return self._reached()
            for (slot, _), old in zip(changes, before, strict=True):
                slot.set(old)
        return None

    def _candidates(self, at: int, node: fx.Node) -> Iterator[list[tuple[Slot, int]]]:
        """Candidate changes, the likeliest first: one number, a row of them, all of one size in a module, a pair."""
        nodes = [n for i, n in self.order.values() if at <= i < at + 6]
        literal = {pair for n in nodes for pair in self._changed_literals(n)}
        known = literal | {pair for n in self.by_module[node.meta.get("module", "")] for pair in self._pairs(n)}
        singles: dict[Any, tuple[Slot, int]] = {}
        for pairs in (literal, known):
            for slot in self._slots(node):
                for old, new in sorted(pairs):
                    if slot.value == old != new:
                        singles.setdefault((slot.identity, new), (slot, new))
        found = list(singles.values())
        yield from ([change] for change in found)
        yield from self._rows(node, literal)
        together: dict[Any, list[tuple[Slot, int]]] = defaultdict(list)
        for slot, new in found:
            together[slot.owner, slot.value, new].append((slot, new))
        yield from (changes for changes in together.values() if len(changes) > 1)
        twos = (list(two) for two in itertools.combinations(found, 2) if two[0][0].identity != two[1][0].identity)
        yield from itertools.islice(twos, _MOST_PAIRS)

    def _rows(self, node: fx.Node, pairs: Pairs) -> Iterator[list[tuple[Slot, int]]]:
        """The entries of a tuple or list that a call reads, such as the sizes of a split, all changed together."""
        new = dict(pairs) if len({old for old, _ in pairs}) == len(pairs) else {}
        rows: dict[Any, list[tuple[Slot, int]]] = defaultdict(list)
        for slot in self._slots(node):
            if slot.index is not None and new.get(slot.value, slot.value) != slot.value:
                rows[slot.owner, slot.place[:-1]].append((slot, new[slot.value]))
        return (changes for changes in rows.values() if len(changes) > 1)

    def _slots(self, node: fx.Node) -> Iterator[Slot]:
        path = str(node.meta.get("module", ""))
        paths = [path]
        while path:
            path = path.rpartition(".")[0]
            paths.append(path)
        seen = set()
        for owner in paths:
            for slot in slots_of(self.paths.module(owner), owner):
                if slot.identity not in seen:
                    seen.add(slot.identity)
                    yield slot

    def _set_throughout_class(self, cls: type, place: tuple[str, ...]) -> None:
        """Change the same attribute in all modules of a class in which only one new size is possible."""
        for path, module in self.copy.named_modules():
            if type(module) is cls:
                pairs = {pair for node in self.by_module[path] for pair in self._pairs(node)}
                for slot in slots_of(module, path):
                    wanted = {new for old, new in pairs if old == slot.value}
                    if slot.place == place and len(wanted) == 1 and slot.identity not in self.changed:
                        slot.set(*wanted)
                        self.changed.add(slot.identity)

    def _pairs(self, node: fx.Node) -> Pairs:
        """Full and kept sizes of the dims of a call's arguments and result, and of products of adjacent factors."""
        return self._sizes_of([node, *node.all_input_nodes])

    def _changed_literals(self, node: fx.Node) -> Iterator[tuple[int, int]]:
        """The numbers of a call that differ in the pruned graph, as (old, new)."""
        image = self.certificate.images.get(node)
        if isinstance(image, fx.Node) and image.op == node.op and image.target == node.target:
            for old, new in zip(_leaves(node.args), _leaves(image.args), strict=False):
                old = old.meta.get("val") if isinstance(old, fx.Node) else old
                if type(new) is int and isinstance(old, int) and old != new:
                    yield int(old), new

    def _groups_that_fail(self, node: fx.Node) -> Held:
        """The narrowed groups of a call's result, else of its arguments or sizes; also of equal calls of its line."""
        groups = {group.variable: group for group in self.graph.groups}
        found: Held = {}
        for like in [node, *self._same_line(node)]:
            given = (self._axes_of([like]), self._axes_of(like.all_input_nodes), self._sizes_read(like))
            for variable in next(filter(None, map(self._shrinking, given)), ()):
                group = groups[variable]
                found.setdefault(group, self._pin(like, group))
        if not found:  # a check in the code, or a value computed from a width
            cls = type(self.paths.module(node.meta.get("module", "")))
            alike = [path for path, module in self.copy.named_modules() if type(module) is cls]
            narrow = self._shrinking(self._axes_of(n for p in alike for n in self.by_module[p])) or list(self.masks)
            cut = [v for v in narrow if not self.masks[v].all()]
            found = {groups[v]: self._pin(node, groups[v]) for v in cut}
        return found

    def _same_line(self, node: fx.Node) -> Iterator[fx.Node]:
        source = node.meta.get("source")
        alike = (n for _, n in self.order.values() if n.target == node.target)
        return (n for n in alike if source and n.meta.get("source") == source)

    def _axes_of(self, nodes: Iterable[fx.Node]) -> list[Axis]:
        return [axis for node in nodes for axis in flat_axes(self.graph.axes.get(node))]

    def _sizes_read(self, node: fx.Node) -> list[Axis]:
        """The axes whose sizes determine the numbers that a call reads."""
        if node.target == "size" and len(node.args) > 1:
            tensor, dim = node.args
            return [self.graph.axes[tensor][dim]] if isinstance(tensor, fx.Node) else []
        numbers = (n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), torch.Tensor))
        return [axis for number in numbers for axis in self._sizes_read(number)]

    def _shrinking(self, axes: Iterable[Axis]) -> list[Channels]:
        found = dict.fromkeys(v for axis in axes for v in variables(self.graph.solver.resolve(axis)))
        return [v for v in found if v in self.masks and not self.masks[v].all()]

    def _pin(self, node: fx.Node, group: Group) -> PinnedWidth:
        path = str(node.meta.get("module", ""))
        cls = type(self.paths.module(path)).__name__
        first = group.members[0]
        reason = f"keep_class: no attribute makes the forward of {cls}{f' ({path})' if path else ''} take another width"
        cause = f"{_words(node)} at {node.meta.get('source', '')}"
        return PinnedWidth(first.tensor, first.dim, group.size, reason, cause)


def _set_width(attention: nn.MultiheadAttention, width: int) -> None:
    weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
    sizes = [width if weight is None else weight.shape[1] for weight in weights]
    attention.embed_dim, attention.kdim, attention.vdim = sizes
    attention.head_dim = width // attention.num_heads


def _words(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _is_call(node: fx.Node) -> bool:
    return node.op.startswith("call_") and isinstance(node.meta.get("val"), torch.Tensor)


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found
