"""Selections that a trace takes to be empty or not, and what code can see where it asks which of them are.

If it asks in an ``if``, or goes in a ``for`` through the numbers of those that are not empty, and sees the same at each
question or step whatever the answers before were, then it goes from one to the next by one answer alone, and cannot do
anything that depends on several of them together.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import operator
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from fxprune.capture.decisions import is_check
from fxprune.capture.lowering import map_leaves
from fxprune.capture.masked import CLASSES, NEW, Members, are_one, bound, classes, members, numbers_of
from fxprune.capture.numbers import Traced, plain, size_of
from fxprune.capture.sources import begins_loop, condition_asked, instruction, user_frames
from fxprune.rules.ops import canonical_name, writes_in_place
from fxprune.rules.registry import bind

_LITERALS = (int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, range, slice)
_NAMED = (types.BuiltinFunctionType, type, types.ModuleType, ContextVar)
_DEPTH = 6
_UNIQUE = "input, sorted=True, return_inverse=False, return_counts=False, dim=None"
_PLACES = {"nonzero", "argwhere", "where"}
# Comparisons of a count with zero that say that there is nothing.
_EMPTY = {"eq", "le"}
_PASSING = set("squeeze flatten view reshape clone contiguous long int to".split())  # they keep the number of elements
# What hands out all variables of the function that calls it.
_READS_ALL = {"locals", "vars", "dir", "eval", "exec"}
# Instructions that do no more than set variables, or one; those that also read some count as reading all theirs.
_SETS = ("STORE_FAST", "DELETE_FAST", "STORE_FAST_STORE_FAST", "STORE_FAST_MAYBE_NULL")


Conditions = tuple[tuple[Any, int], ...]


class _Held(NamedTuple):
    """What holds others: its kind, which for the variables of a function is where that is, and its parts."""

    kind: Any
    parts: dict[Any, Any]


class Moments:
    """The questions of one trace, and the returns of modules in which something was asked, with what code sees there.

    ``unclear``: whether it may keep an answer elsewhere: in an expression that is not finished, or in a function that
    asked and returned inside its module.
    """

    def __init__(self) -> None:
        self.unclear = False
        self._watched: tuple[Callable[[], Any], ...] = ()
        self._paths: Mapping[int, str] = {}
        self._found: list[Any] = []
        self._asking: list[types.FrameType] = []
        self._conditions: dict[tuple[types.CodeType, int | None], int] = {}
        self._last: Any = None

    def watch(self, paths: Mapping[int, str], *watched: Callable[[], Any]) -> None:
        """What tells modules apart, by identity, and what gives the state that code may change."""
        self._paths, self._watched = paths, watched

    def are_as_in(self, other: Moments) -> bool:
        """Whether two traces ask at the same places, and see the same there."""
        clear = not self.unclear and not other.unclear and len(self._found) == len(other._found)
        return clear and all(map(_agree, self._found, other._found))

    def asked(self) -> None:
        """The code asks now whether a selection is empty."""
        frames = list(user_frames())
        if not frames or self.unclear:  # no code asks once the forward is over
            return
        frame = frames[0]
        line = condition_asked(frame)
        # C code that asks more than once does so while the variables of the code stay as they are.
        seen = frame, frame.f_lasti, {name: id(value) for name, value in frame.f_locals.items()}
        one_place = self._conditions.setdefault((frame.f_code, line), frame.f_lasti) == frame.f_lasti
        self.unclear = line is None or seen == self._last or not one_place or not {*self._asking} <= {*frames}
        self._last = seen
        self._asking += [frame] * (frame not in self._asking)
        self._note(frames)

    def steps(self, numbers: Mapping[int, bool], row: Callable[[int], Any], method: str) -> Any:
        """The rows of those numbers that are true, for code that gets them now by a method.

        All are noted: before each of them code must see the same, whether those before were true or not.
        """
        frame = next(user_frames(), None)
        if frame is None or not begins_loop(frame, method):
            self.unclear = True  # it may count them
            return [row(number) for number, there in numbers.items() if there]
        return self._noted(frame, numbers, row)

    def _noted(self, frame: types.FrameType, numbers: Mapping[int, bool], row: Callable[[int], Any]) -> Iterator[Any]:
        for number, there in (*numbers.items(), (-1, False)):
            frames = list(user_frames())
            self.unclear |= frames[0] is not frame or not {*self._asking} <= {*frames}
            self._asking += [frame] * (frame not in self._asking)
            self._note(frames)
            if there:
                yield row(number)

    def returned(self, value: Any) -> None:
        """A module returns a value."""
        frames = {*user_frames()} if self._asking else set()
        running = [frame for frame in self._asking if frame in frames]
        if len(running) < len(self._asking):
            self._asking = running
            self._note(value)

    def _note(self, value: Any) -> None:
        with torch._C.DisableTorchFunction():
            state = [watched() for watched in self._watched]
            self._found.append(self._seen([value, state], {}, "", _DEPTH))

    def _seen(self, value: Any, names: dict[int, str], at: str, depth: int) -> Any:
        """A value, as far as code may tell it from another; ``names``: those of the tensors that were seen before."""
        if isinstance(value, nn.Module):
            return nn.Module, self._paths.get(id(value), object())
        if isinstance(value, fx.Node):
            return fx.Node  # what a number was read of, which the graph tells
        if isinstance(value, _LITERALS + _NAMED) and not isinstance(value, Traced):
            return type(value), value
        if isinstance(value, types.FunctionType):
            is_new = names.setdefault(id(value), at) == at  # one may hold itself
            held = (_enclosed(value) if depth else {"deep": object()}) if is_new else {"name": names[id(value)]}
            return _Held(value, {key: self._seen(part, names, f"{at}.{key}", depth - 1) for key, part in held.items()})
        kind, held = _parts(value) if depth else (object(), {})
        if isinstance(value, torch.Tensor):
            kind = [torch.Tensor, value.dtype, value.dim(), names.setdefault(id(value), at), _digest(value)]
        return _Held(kind, {key: self._seen(part, names, f"{at}.{key}", depth - 1) for key, part in held.items()})


def _digest(value: torch.Tensor) -> bytes:
    """What tells the values of a tensor of the forward's own from others; none are known on the meta device."""
    data: Any = b"" if value.is_meta else value.detach().cpu().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data).digest()


def _enclosed(function: types.FunctionType) -> dict[Any, Any]:
    """What a function holds besides its code, such as one that a class makes anew for each of its subclasses."""
    cells = (cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType())
    return {"defaults": (function.__defaults__, function.__kwdefaults__, vars(function)), **dict(enumerate(cells))}


def _parts(value: Any) -> tuple[Any, dict[Any, Any]]:
    """What a value is, and what it holds; of a kind that is unlike anything where that cannot be told."""
    if isinstance(value, types.FrameType):
        return (value.f_code, value.f_lasti), _variables(value)
    if isinstance(value, Traced):
        return value.function, dict(enumerate(value.operands))
    if isinstance(value, torch.Tensor):  # code may hang numbers on it
        return torch.Tensor, vars(value)
    if isinstance(value, Token):
        return value.var, {} if value.old_value is Token.MISSING else {"before": value.old_value}
    if isinstance(value, types.MethodType):
        return value.__func__, {"self": value.__self__}
    if isinstance(value, (list, tuple, deque)):
        return type(value), dict(enumerate(value))
    if isinstance(value, Mapping):
        return type(value), dict(enumerate(part for pair in value.items() for part in pair))
    is_own = type(value).__module__.partition(".")[0] not in ("torch", "builtins") and hasattr(value, "__dict__")
    return (type(value), vars(value)) if is_own else (object(), {})


def _agree(one: Any, other: Any) -> bool:
    """Whether code sees the same. A variable that is not set in one of the traces cannot be read in both."""
    if not isinstance(one, _Held) or not isinstance(other, _Held):
        return bool(one == other)
    kinds = [one.kind, other.kind]
    if all(isinstance(kind, types.FunctionType) for kind in kinds):
        if one.kind is other.kind:
            return True
        kinds = [(kind.__code__, id(kind.__globals__)) for kind in kinds]
    both = one.parts.keys() & other.parts.keys()
    whole = len(both) == len(one.parts) == len(other.parts) or isinstance(one.kind, tuple)
    return whole and kinds[0] == kinds[1] and all(_agree(one.parts[key], other.parts[key]) for key in both)


def _variables(frame: types.FrameType) -> dict[str, Any]:
    """The variables of a frame; of one at the next step of a loop, those that may be read before they are set."""
    code, (name, at) = frame.f_code, instruction(frame)
    if name != "FOR_ITER" or not _READS_ALL.isdisjoint(code.co_names):
        return dict(frame.f_locals)
    read = _read_after(code)[at] | {*code.co_cellvars, *code.co_freevars}
    return {name: value for name, value in frame.f_locals.items() if name in read}


@functools.lru_cache(maxsize=256)
def _read_after(code: types.CodeType) -> dict[int, frozenset[str]]:
    """For each instruction of a function, the variables that may be read from there on before they are set."""
    steps = list(dis.get_instructions(code))
    caught = [(e.start, e.end, e.target) for e in getattr(dis.Bytecode(code), "exception_entries", ())]
    known: dict[int, frozenset[str]] = dict.fromkeys((step.offset for step in steps), frozenset())
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(steps))):
            step = steps[number]
            ends = step.opname.startswith(("RETURN", "RERAISE", "RAISE", "JUMP_FORWARD", "JUMP_BACKWARD"))
            follow = [steps[number + 1].offset] if number + 1 < len(steps) and not ends else []
            follow += [step.argval] if step.opcode in (*dis.hasjrel, *dis.hasjabs) else []
            follow += [target for start, end, target in caught if start <= step.offset < end]
            read = frozenset[str]().union(*(known[offset] for offset in follow))
            if step.opcode in dis.haslocal:
                names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                read = read - {*names} if step.opname in _SETS else read | {*names}
            changed = changed or read != known[step.offset]
            known[step.offset] = read
    return known


class Selections:
    """The masks that a trace selects by, and how many entries each is taken to select.

    ``empty``: the numbers of those that select nothing, while all others select some; None: as the sample says.
    """

    def __init__(self, empty: frozenset[int] | None) -> None:
        self._masks: list[tuple[Members, list[fx.Node]]] = []
        self._empty = empty
        self.moments = Moments()
        self.stepped: set[int] = set()  # those through which code goes, but for empty ones

    def asked(self, check: fx.Node) -> None:
        """A check was written: if it asks whether a selection is empty, note what the code sees there."""
        if self._empty is not None and not needs_entries(check) is needs_none(check) is None:
            self.moments.asked()

    def sized(self, node: fx.Node, value: Any) -> Any:
        """The meta result of an op that selects by a mask, with the number of entries that it is taken to have."""
        mask = selected_by(node)
        if self._empty is None or mask is None:
            return value
        node.meta["selects"] = number = self._number(mask)
        return with_entries(value, 0 if number in self._empty else None)

    def answer(self, node: fx.Node, value: Any) -> Any:
        """What is read from ``mask.any()``, ``mask.sum() == 0``, a count; ``value`` if it is none of these."""
        told_empty = canonical_name(node.target) in _EMPTY and node.args[1:] == (0,) and not node.kwargs
        counted: Any = node.args[0] if told_empty else node
        mask = members(counted, []) if isinstance(counted, fx.Node) else None
        if self._empty is None or mask is None or mask.of is node:
            return value
        node.meta["selects"] = number = self._number(counted)
        node.meta["told_empty"] = told_empty
        if not isinstance(value, bool):
            return 0 if number in self._empty else max(value, 2)
        return (number in self._empty) is told_empty

    def steps(self, node: fx.Node, method: str, decide: Callable[..., None], device: torch.device) -> Any:
        """The rows of a tensor on ``device`` that lists what is not empty, for code that gets them by ``method``."""
        known = None if self._empty is None else _listed(node, decide)
        if self._empty is None or known is None:
            return None
        mask, chain, size = known
        told = bound(mask.of) if mask.dims == (CLASSES,) else None  # classes above that are never told
        there, sizes = {}, [size] if told is None else [size, told]
        for each in sizes:
            decide(operator.eq, (each, plain(each)))
        for place in range(min(map(plain, sizes))):
            number = self._numbered(mask.at(0, place), chain)
            there[place] = number not in self._empty
            self.stepped.add(number)
        shape = node.meta["val"].shape[1:]

        def row(number: int) -> Any:
            return number if method == "tolist" else torch.full(shape, number, device=device)

        return self.moments.steps(there, row, method)

    def _number(self, mask: fx.Node) -> int:
        """The number of a mask, which one that is empty where it is shares, if nothing was written in between."""
        chain: list[fx.Node] = []
        known = members(mask, chain)
        return self._numbered(known or Members(mask, ()), chain if known else [mask])

    def _numbered(self, mask: Members, chain: list[fx.Node]) -> int:
        for number, (known, others) in enumerate(self._masks):
            same = known.picked == mask.picked and (known.of is mask.of or are_one(known.of, mask.of))
            if same and not _are_written([*chain, *others]):
                return number
        self._masks.append((mask, chain))
        return len(self._masks) - 1


def _are_written(nodes: list[fx.Node]) -> bool:
    """Whether an op wrote into the memory of one of some nodes after the first of them."""
    missing, found = {*nodes}, False
    with torch._C.DisableTorchFunction():
        memories = {memory(node) for node in nodes}
        for node in reversed(nodes[0].graph.nodes):
            missing.discard(node)
            if not missing or found:
                break
            into = node.args[0] if node.args and writes_in_place(node) else None
            found = isinstance(into, fx.Node) and memory(into) in memories
    return found


def selected_by(node: fx.Node) -> fx.Node | None:
    """What an op selects by, if the first dim of each result is the number of entries."""
    name = canonical_name(node.target)
    if name in _PLACES:
        places = node.args[0] if len(node.args) == 1 else None
        return places if isinstance(places, fx.Node) else None
    index = node.args[1] if name in ("getitem", "masked_select") else None
    if isinstance(index, tuple) and all(part is None or isinstance(part, (int, slice)) for part in index[1:]):
        index = index[0] if index else None
    is_mask = isinstance(index, fx.Node) and index.meta["val"].dtype == torch.bool
    return index if is_mask else None  # type: ignore[return-value]


def with_entries(value: Any, entries: int | None) -> Any:
    def sized(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return leaf
        return leaf.new_empty((max(len(leaf), 2) if entries is None else entries, *leaf.shape[1:]))

    return map_leaves(sized, value)


def _listed(node: fx.Node, decide: Callable[..., None]) -> tuple[Members, list[fx.Node], Any] | None:
    """What a tensor lists as not empty: a mask with one dim, its nodes, and how many there may be; None of others."""
    rows, chain = node.meta["val"], list[fx.Node]()
    if not rows.dim() or rows.numel() != len(rows):
        return None
    while (name := canonical_name(node.target)) in _PASSING | {"getitem"}:
        given = node.args[0]
        if not isinstance(given, fx.Node) or (name == "getitem" and node.args[1] not in (0, (slice(None), 0))):
            return None
        node = given
    mask: Any = node.args[0] if node.op.startswith("call") and len(node.args) == 1 else None
    if not isinstance(mask, fx.Node) or not isinstance(mask.meta["val"], torch.Tensor):
        return None
    if name == "unique" and bind(_UNIQUE, node.args, node.kwargs) == bind(_UNIQUE, (mask,), {}):
        numbers = numbers_of(mask, chain)
        size = None if numbers is None else bound(numbers)
        return None if size is None or numbers is None else (Members(numbers, (CLASSES,)), chain, size)
    found = members(mask, chain) if name in _PLACES else None
    if found is None or len(found.dims) != 1 or found.dims == (NEW,):
        return None
    size = classes(chain, decide) if found.dims == (CLASSES,) else size_of(mask, 0, len(mask.meta["val"]))
    return None if size is None else (found, chain, size)


def memory(node: fx.Node) -> int | None:
    """Which memory a tensor is in."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


_ENTRIES = ((operator.ne, 0), (operator.gt, 0), (operator.ge, 1))
_NONE = ((operator.eq, 0), (operator.le, 0), (operator.lt, 1))


def needs_entries(check: fx.Node) -> int | None:
    """The number of the selection of which a node checks just that it is not empty."""
    return _selected(check, _ENTRIES, _NONE)


def needs_none(check: fx.Node) -> int | None:
    """The number of the selection of which a node checks just that it is empty."""
    return _selected(check, _NONE, _ENTRIES)


def _selected(check: fx.Node, conditions: Conditions, where_told: Conditions) -> int | None:
    """The selection that a check counts; ``where_told``: what it must ask of an answer that there is nothing."""
    condition = check.args[0] if is_check(check) else None
    if not isinstance(condition, fx.Node) or len(condition.args) != 2:
        return None
    asked, least = condition.args
    while isinstance(asked, fx.Node) and asked.target in (operator.mul, operator.pos):
        factors = [a for a in asked.args if not (isinstance(a, int) and a > 0)]
        asked = factors[0] if len(factors) == 1 else None
    if not isinstance(asked, fx.Node) or (asked.target, *asked.args[1:]) not in (("size", 0), ("item",)):
        return None
    selected: Any = asked.args[0]
    while isinstance(selected, fx.Node) and "selects" not in selected.meta:
        passes = canonical_name(selected.target) in _PASSING and selected.meta["val"].dim() == 1
        given: Any = selected.args[0] if selected.args else None
        of_tuple = selected.target is operator.getitem and not isinstance(given.meta["val"], torch.Tensor)
        selected = given if passes or of_tuple else None
    if not isinstance(selected, fx.Node):
        return None
    fits = (condition.target, least) in (where_told if selected.meta.get("told_empty") else conditions)
    return selected.meta["selects"] if fits else None
