"""The parts of an opaque module that a graph may replace: those that the code around them only calls.

A graph has no methods. A part whose methods the enclosing code may use, such as the losses of a detector's head, keeps
its class, and its own parts are considered in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.capturing import Captured, capture
from fxprune.capture.decisions import holds_at_batch
from fxprune.capture.modes import Modes, capture_training, effects_below
from fxprune.capture.recording import Calls, is_plain, only_called_inside, record_calls
from fxprune.capture.samples import Sample
from fxprune.capture.state import Place
from fxprune.errors import CaptureError
from fxprune.rules import is_leaf
from fxprune.rules.ops import names_of


def names_used(module: nn.Module) -> frozenset[str]:
    """Every name and every string in the code of a module's own class and its bases, nn.Module's left out."""
    found: set[str] = set()
    for cls in _own_classes(module):
        for value in vars(cls).values():
            for function in _functions(value):
                found.update(_names(function.__code__))
    return frozenset(found)


def is_only_called(part: nn.Module, names: frozenset[str]) -> bool:
    """Whether ``names`` holds no method or property of ``part`` or its submodules."""
    return not any(method in names for module in part.modules() for method in _methods(module))


def _names_inside(part: nn.Module) -> set[str]:
    """The names of all parts of a part. Code that reads one, as that of an encoder of transformers does, may ask it for
    attributes that no graph has."""
    return {name for child in part.modules() for name, _ in child.named_children()}


def _methods(module: nn.Module) -> Iterator[str]:
    for cls in _own_classes(module):
        for name, value in vars(cls).items():
            if name != "forward" and not name.startswith("__") and any(True for _ in _functions(value)):
                yield name


def _own_classes(module: nn.Module) -> Iterator[type]:
    for cls in type(module).__mro__:
        if issubclass(cls, nn.Module) and not cls.__module__.startswith("torch.nn."):
            yield cls


def _functions(value: Any) -> Iterator[FunctionType]:
    wrapped: tuple[Callable[..., Any] | None, ...] = (value,)
    if isinstance(value, property):
        wrapped = (value.fget, value.fset)
    elif isinstance(value, (staticmethod, classmethod)):
        wrapped = (value.__func__,)
    return (function for function in wrapped if isinstance(function, FunctionType))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield constant


_ATTEMPTS = 100
# What helps where the model's own forward cannot be traced, and calls no module that could be.
_MOVE = (
    "move the lines from there on out of the forward, into a function of what it returns, or those before them into a "
    "module of their own, which then is pruned inside"
)


def capture_parts(
    model: nn.Module, sample: Sample, failure: CaptureError, modes: Modes, written: Mapping[Place, Any]
) -> Captured:
    """Capture what can be captured, after ``failure`` of the whole.

    Raises:
        CaptureError: ``failure`` again where nothing inside can be traced either, or code that stays as it is asks for
            the memory format of a tensor, which a graph around or inside it may give otherwise.
    """
    if any(t.is_meta for t in model.parameters()):
        raise failure
    try:
        recorded = record_calls(model, sample)
    except Exception:  # the user's own code: it may raise anything
        raise failure from None
    main = _main(model, sample, failure, recorded, written)
    none: frozenset[str] = frozenset()
    inner = (i for path in main.opaque for i in _islands(model, path, recorded, modes, written, none, none))
    main.islands = tuple(inner)
    if not main.islands and "" in main.opaque:
        raise CaptureError(f"{failure}; {_MOVE}", path=failure.path) from failure
    _refuse_layouts(main, recorded)
    main.opaque_macs = {path: _own_macs(main, path, recorded) for path in main.opaque}
    return main


def _refuse_layouts(main: Captured, recorded: Mapping[str, Calls]) -> None:
    islands = tuple(map(island_path, main.islands))
    for path in (path for path, calls in recorded.items() if calls.asks_layout):
        if _is_inside(path, tuple(main.opaque)) and not _is_inside(path, islands):
            message = "code that cannot be traced asks for the memory format of a tensor: call .contiguous() instead"
            raise CaptureError(message, path=path)


def _is_inside(path: str, parts: Sequence[str]) -> bool:
    return any(not part or path == part or path.startswith(f"{part}.") for part in parts)


def _own_macs(main: Captured, path: str, recorded: Mapping[str, Calls]) -> float:
    """Multiply-accumulates of an opaque module that its islands do not account for."""
    inside = [name for name in map(island_path, main.islands) if name.startswith(f"{path}.".lstrip("."))]
    return recorded[path].macs - sum(recorded[name].macs for name in inside)


def island_path(island: Captured) -> str:
    """The path of an island (a traced part of an opaque module) in the model."""
    return island.prefix.removesuffix(".")


def _main(
    model: nn.Module,
    sample: Sample,
    failure: CaptureError,
    recorded: Mapping[str, Calls],
    written: Mapping[Place, Any],
) -> Captured:
    opaque: dict[str, str] = {}
    # A list of tensors may have another length at the next call, which a graph would not follow.
    path = "" if any(isinstance(v, list) for v in (*sample.args, *sample.kwargs.values())) else failure.path
    for _ in range(_ATTEMPTS):
        opaque = {p: reason for p, reason in opaque.items() if path and not p.startswith(f"{path}.")}
        opaque[path] = str(failure)
        if not path:
            break
        try:
            known = {p: (reason, recorded[p].results) for p, reason in opaque.items()}
            return capture(model, sample, opaque=known, written=written)
        except CaptureError as error:
            failure, path = error, error.path if error.path not in opaque else parent(error.path)
    shapes, aliases, parameters = names_of(model)
    return Captured(fx.Graph(), shapes, aliases, {}, sample, parameters=parameters, opaque={"": str(failure)})


def parent(path: str) -> str:
    """The path of the enclosing module."""
    return path.rpartition(".")[0]


def _islands(
    model: nn.Module,
    path: str,
    recorded: dict[str, Calls],
    modes: Modes,
    written: Mapping[Place, Any],
    names: frozenset[str],
    of_torch: frozenset[str],
) -> Iterator[Captured]:
    """The parts of the module at ``path``; ``names`` is what the code of the modules around it uses, and ``of_torch``
    what that of torch's own modules among them does."""
    module = model.get_submodule(path)
    names |= names_used(module)
    if type(module).__module__.startswith("torch.nn."):
        of_torch |= set(type(module).forward.__code__.co_names)
    for name, child in module.named_children():
        inner = f"{path}.{name}".lstrip(".")
        if not any(True for _ in child.parameters()) or (inner in recorded and is_leaf(child)):
            continue
        called = is_only_called(child, names) and of_torch.isdisjoint(_names_inside(child))
        island = _island(child, inner, recorded, modes, written) if called else None
        if island is not None:
            yield island
        else:
            yield from _islands(model, inner, recorded, modes, written, names, of_torch)


def _island(
    child: nn.Module, path: str, recorded: dict[str, Calls], modes: Modes, written: Mapping[Place, Any]
) -> Captured | None:
    calls = recorded.get(path)
    if calls is None or not only_called_inside(recorded, path):
        return None
    if not is_plain((calls.sample.args, calls.sample.kwargs)) or not all(map(is_plain, calls.results)):
        return None
    try:
        flags, sample = modes.below(f"{path}.", training=False), _with_rows(calls.sample)
        captured = _captured_on_two_rows(child, sample, prefix=f"{path}.", flags=flags, written=written)
        captured.training_graph = capture_training(child, captured, modes, written)
        captured.effects = effects_below(modes.effects, path)
    except CaptureError:
        return None
    captured.calls = len(calls.results) * (sample.batch_size or 1) / (captured.sample.batch_size or 1)
    return captured


def _captured_on_two_rows(child: nn.Module, sample: Sample, **options: Any) -> Captured:
    """The capture of a part, on two rows instead of one if both take the same branches. Raises CaptureError."""
    if sample.batch_size == 1:
        try:
            captured = capture(child, sample.with_batch(2), **options)
            if holds_at_batch(captured.graph, 2, 1):
                return captured
        except CaptureError:
            pass  # as it was called, then
    return capture(child, sample, **options)


def _with_rows(sample: Sample) -> Sample:
    """A sample that was recorded with a batch of none gets two rows, so that sizes can be told apart."""
    if sample.batch_size != 0:
        return sample
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.new_empty(2, *t.shape[1:]), (sample.args, sample.kwargs)
    )
    return Sample(args, kwargs)
