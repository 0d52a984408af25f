"""Plans as text. Index lists are written as ranges ("0-31,40"), which people can review and diffs can show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from fxprune.axes.expressions import IndexArray
from fxprune.errors import PlanError
from fxprune.util.tables import add_row, new_table, plain_text, with_rest

if TYPE_CHECKING:
    from fxprune.planning.plan import Plan

_RANGE = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?", re.ASCII)


def write_ranges(indices: IndexArray) -> str:
    """Ascending indices as text; runs of two or more become "first-last"."""
    if not len(indices):
        return ""
    ends = np.flatnonzero(np.diff(indices) != 1)
    firsts = indices[np.concatenate([[0], ends + 1])].tolist()
    lasts = indices[np.concatenate([ends, [len(indices) - 1]])].tolist()
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def parse_ranges(text: str, size: int, where: str, *, most: int) -> IndexArray:
    """The indices that ``text`` lists, each in ``[0, size)``, strictly ascending.

    Bounds are checked before anything is expanded, to at most ``most`` indices, so that a forged range cannot fill the
    memory. Raises PlanError: not a list of ranges, out of range, unsorted, repeated or too many; ``where`` names the
    part of the plan.
    """
    pieces: list[IndexArray] = []
    following = listed = 0
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise PlanError(f'{where}: {piece[:40]!r} is not an index or a range such as "0-31"')
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= size:
            raise PlanError(f"{where}: index {last} is out of range for {size} channels")
        if first < following or last < first:
            raise PlanError(f"{where}: indices must ascend without repeats; {piece!r} does not follow {following - 1}")
        listed += last + 1 - first
        if listed > most:
            raise PlanError(f"{where}: the plan lists more indices than any network has")
        pieces.append(np.arange(first, last + 1, dtype=np.int64))
        following = last + 1
    return np.concatenate(pieces)


FORMAT = "fxprune-plan-1"
_MOST_INDICES = 1 << 26  # all lists together: 512 MB; the largest published networks stay far below
_LARGEST_DIM = 1 << 31


def write_parts(plan: Plan) -> str:
    """The plan as text: one group or tensor per line, names sorted, so that two plans can be compared line by line."""
    groups = {name: write_ranges(np.asarray(kept, dtype=np.int64)) for name, kept in plan.groups.items()}
    # Dims that a group cuts alike share one index tensor; it is converted to text once.
    written: dict[int, str] = {}
    tensors = {n: {"shape": list(s), "keep": _texts(plan.keep[n], written)} for n, s in plan.shapes.items()}
    sections = {"groups": groups, "settings": dict(plan.settings), "tensors": tensors}
    body = "".join(f',\n"{name}": {{{_lines(entries)}}}' for name, entries in sections.items())
    return f'{{"format": {_value(FORMAT)}{body}}}\n'


def _texts(keep: tuple[Tensor | None, ...], written: dict[int, str]) -> list[str | None]:
    for kept in keep:
        if kept is not None and id(kept) not in written:
            written[id(kept)] = write_ranges(kept.numpy())
    return [None if kept is None else written[id(kept)] for kept in keep]


def _lines(entries: Mapping[str, Any]) -> str:
    lines = ",\n".join(f"  {_value(name)}: {_value(entries[name])}" for name in sorted(entries))
    return f"\n{lines}\n" if lines else ""


def _value(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PlanError(f"a plan holds JSON values only, not {value!r}: {error}") from error


def read_parts(text: str) -> dict[str, Any]:
    """Parse and check the text. Raises PlanError: the text is not a plan; the message says where."""
    if not isinstance(text, str):
        raise PlanError(f"the plan must be text, not {type(text).__name__}")
    document = _dict(_parse(text), "the plan")
    if document.get("format") != FORMAT:
        raise PlanError(f"the plan: format is {str(document.get('format'))[:40]!r}; this version reads {FORMAT!r}")
    missing = {"groups", "settings", "tensors"} - document.keys()
    unknown = document.keys() - {"format", "groups", "settings", "tensors"}
    if missing or unknown:
        odd = sorted(missing or unknown)[0]
        raise PlanError(f"the plan: {'missing' if missing else 'unknown'} entry {odd[:40]!r}")
    lists = _IndexLists()
    groups = {n: _channels(kept, n, lists) for n, kept in _dict(document["groups"], "groups").items()}
    entries = {n: _dict(entry, f"tensor {n!r}") for n, entry in _dict(document["tensors"], "tensors").items()}
    shapes = {n: _shape(entry.get("shape"), n) for n, entry in entries.items()}
    keep = {n: _keep(entry.get("keep"), shapes[n], n, lists) for n, entry in entries.items()}
    return {"keep": keep, "groups": groups, "shapes": shapes, "settings": _dict(document["settings"], "settings")}


def _parse(text: str) -> Any:
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(document, ensure_ascii=False).encode()  # raises for lone surrogates
        return document
    except RecursionError as error:
        raise PlanError("the plan: it is nested too deeply") from error
    except ValueError as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"the plan: not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise PlanError(f"the plan: {next(n for n in names if names.count(n) > 1)[:80]!r} occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise PlanError(f"the plan: {name} is not a JSON number")


def _dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where}: must be an object, not {type(value).__name__}")
    return value


class _IndexLists:
    """Reads index lists, equal texts once, and refuses a plan whose lists would fill the memory."""

    def __init__(self) -> None:
        self._left = _MOST_INDICES
        self._known: dict[tuple[str, int], IndexArray] = {}

    def indices(self, text: Any, size: int, where: str) -> IndexArray:
        if not isinstance(text, str):
            raise PlanError(f'{where}: kept indices are text such as "0-31,40", not {type(text).__name__}')
        if (text, size) not in self._known:
            self._known[text, size] = parse_ranges(text, size, where, most=self._left)
            self._left -= len(self._known[text, size])
        return self._known[text, size]


def _channels(text: Any, name: str, lists: _IndexLists) -> tuple[int, ...]:
    return tuple(lists.indices(text, _LARGEST_DIM, f"group {name!r}").tolist())


def _shape(shape: Any, name: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > 64:
        raise PlanError(f"tensor {name!r}: shape must be a list of sizes")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _LARGEST_DIM:
            raise PlanError(f"tensor {name!r}: {str(size)[:40]!r} is not a size")
    return tuple(shape)


def _keep(keep: Any, shape: tuple[int, ...], name: str, lists: _IndexLists) -> tuple[Tensor | None, ...]:
    if not isinstance(keep, list) or len(keep) != len(shape):
        raise PlanError(f"tensor {name!r}: keep must be a list with one entry for each of its {len(shape)} dims")
    kept: list[Tensor | None] = []
    for dim, (text, size) in enumerate(zip(keep, shape, strict=True)):
        indices = None if text is None else lists.indices(text, size, f"tensor {name!r} dim {dim}")
        kept.append(None if indices is None or len(indices) == size else torch.from_numpy(indices))
    return tuple(kept)


def kept_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor after a plan."""
    return {
        name: tuple(size if index is None else len(index) for size, index in zip(shape, plan.keep[name], strict=True))
        for name, shape in plan.shapes.items()
    }


# The limits of the tables in plan_as_text: groups, tensors and characters in a cell.
_PLAN_GROUPS, _PLAN_TENSORS, _CELL = 25, 25, 40


def plan_as_text(plan: Plan) -> str:
    """The kept channels of each group, and the matrices and kernels that become smaller, in at most sixty lines."""
    groups = new_table("group", ["channels"], last="that stay")
    for name, kept in list(plan.groups.items())[:_PLAN_GROUPS]:
        add_row(groups, name, str(len(kept)), _shortened(write_ranges(np.asarray(kept, dtype=np.int64))))
    cut = {name: shape for name, shape in kept_shapes(plan).items() if len(shape) > 1 and shape != plan.shapes[name]}
    tensors = new_table("matrix or kernel", ["before", "after"])
    for name, shape in list(cut.items())[:_PLAN_TENSORS]:
        add_row(tensors, name, *(_shortened(" x ".join(map(str, sizes))) for sizes in (plan.shapes[name], shape)))
    parts: list[RenderableType] = [Text(repr(plan)), Text("")]
    parts += [with_rest(groups, len(plan.groups) - _PLAN_GROUPS, "groups"), Text("")] if plan.groups else []
    return plain_text(Stack(*parts, with_rest(tensors, len(cut) - _PLAN_TENSORS, "matrices and kernels")))


def _shortened(text: str) -> str:
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
