"""The configuration from which a model's class builds the pruned shapes, found by building on the meta device."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.capture.checking import is_meta
from fxprune.capture.samples import Sample
from fxprune.errors import ProofError
from fxprune.keeping.running import check_equal
from fxprune.keeping.slots import Slot, sizes_of, slots_of
from fxprune.util.copies import private_copy

__all__ = ["Change", "configure", "finish"]

Shapes = dict[str, tuple[int, ...]]
_MOST_BUILDS = 200
_MOST_FIELDS = 4  # that are tried together at once


@dataclass(frozen=True)
class Change:
    """A field of a configuration, and its new value."""

    slot: Slot
    new: int

    def __str__(self) -> str:
        return f"{'.'.join(self.slot.place)} {self.slot.value} -> {self.new}"


def finish(
    graph: ChannelGraph,
    model: nn.Module,
    masks: Mapping[Channels, Mask],
    pruned: nn.Module,
    kept: nn.Module,
    own: Sample,
) -> list[str]:
    """Compare a kept class with the proven graph at several sizes, and solve its configuration; notes for the report.

    Raises:
        ProofError: the class's own forward answers otherwise.
    """
    if is_meta(model):
        return []
    more = [own.with_batch(own.batch_size + 1)] if own.batch_size is not None else []
    samples = [own, *more, *own.others, *(variant.sample for variant in graph.captured.variants)]
    samples = [replace(sample, others=()).with_values(0) for sample in samples]
    check_equal(kept, pruned, samples)
    words = configure(model, kept, sizes_of(graph, masks), pruned, samples)
    return [words] if words else []


def configure(
    model: nn.Module, kept: nn.Module, pairs: Mapping[int, set[int]], graph: nn.Module, samples: list[Sample]
) -> str:
    """Change the configuration that a kept class holds so that its class builds it; what was done, or why nothing.

    Args:
        model: the original.
        kept: the narrowed copy, which is changed.
        pairs: kept sizes by full size, of all dims and their factors.
        graph: the proven network, with which the class is compared once more.
        samples: for that.

    Returns:
        Words for the report; empty where the class is not built from a configuration.
    """
    name = _configuration(model)
    if not name:
        return ""
    wanted = _shapes(kept)
    config = getattr(kept, name)
    found = _solved(type(kept), config, pairs, wanted)
    if found is None:
        return f"no values of {name} make {type(kept).__name__} build these shapes: {_first_odd(kept, config, wanted)}"
    words = ", ".join(map(str, found)) or "no field changes"
    trial = private_copy(kept)
    for change in found:
        _same_slot(getattr(trial, name), change.slot).set(change.new)
    if (refusal := _refusal(getattr(trial, name))) and not _refusal(config):
        return f"{name} ({words}) gives these shapes, but its class refuses it: {refusal}"
    try:
        built = type(kept)(copy.deepcopy(getattr(trial, name))).to(_dtype(kept))
        built.load_state_dict(kept.state_dict())
        built.train(kept.training)
        _take_numbers(model, built, trial)
        for one in (built, trial):
            check_equal(one, graph, samples[:1])
    except (ProofError, RuntimeError) as error:
        return f"{name} ({words}) gives these shapes, and another network: {error}; a value follows from a width there"
    for change in found:
        _same_slot(config, change.slot).set(change.new)
    _take_numbers(model, built, kept)
    return f"{name}: {words}"


def _configuration(model: nn.Module) -> str:
    """The attribute that holds a configuration from which the model's class builds this model's shapes."""
    wanted = _shapes(model)
    for name, value in vars(model).items():
        if name.startswith("_") or isinstance(value, (nn.Module, torch.Tensor, type)) or callable(value):
            continue
        if hasattr(value, "__dict__") and _built(type(model), value) == wanted:
            return name
    return ""


def _refusal(config: Any) -> str:
    """What the class of a configuration says when one with these fields is made; empty where it makes it."""
    try:
        names = inspect.signature(type(config)).parameters
        type(config)(**{name: copy.deepcopy(getattr(config, name)) for name in names if hasattr(config, name)})
    except Exception as error:  # the constructor is the user's own code: anything may come out of it
        return f"{type(error).__name__}: {error!s:.300}"
    return ""


def _built(cls: type[nn.Module], config: Any) -> Shapes | None:
    """The shapes that a class builds from a configuration; None where it refuses it."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return _shapes(cls(copy.deepcopy(config)))
    except Exception:  # the constructor is the user's own code: anything may come out of it
        return None


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _solved(cls: Any, config: Any, pairs: Mapping[int, set[int]], wanted: Shapes) -> list[Change] | None:
    """The fewest changes of fields that give the wanted shapes, found a few at a time; None where there are none."""
    builds = itertools.count()
    trial, done = copy.deepcopy(config), list[Change]()
    odd = _odd(_built(cls, trial), wanted)
    while odd:
        odd, best = _best(cls, trial, pairs, {change.slot.place for change in done}, odd, wanted, builds)
        if not best:
            return None
        for change in best:
            done.append(Change(_same_slot(config, change.slot), change.new))
            change.slot.set(change.new)
    return done


def _best(
    cls: Any,
    config: Any,
    pairs: Mapping[int, set[int]],
    taken: set[tuple[str, ...]],
    odd: float,
    wanted: Shapes,
    builds: Iterator[int],
) -> tuple[float, list[Change]]:
    """The changes of the fewest fields that leave fewer odd dims than ``odd``, and how many those are."""
    best: list[Change] = []
    for changes in _tries(config, pairs, taken):
        if next(builds) > _MOST_BUILDS or odd == 0 or (best and len(changes) > len(best)):
            break
        olds = [change.slot.value for change in changes]
        for change in changes:
            change.slot.set(change.new)
        fewer = _odd(_built(cls, config), wanted)
        for change, old in zip(changes, olds, strict=True):
            change.slot.set(old)
        if fewer < odd:
            odd, best = fewer, changes
    return odd, best


def _tries(config: Any, pairs: Mapping[int, set[int]], taken: set[tuple[str, ...]]) -> Iterator[list[Change]]:
    slots = [slot for slot in slots_of(config) if slot.place not in taken and slot.value > 1]
    singles = [Change(slot, new) for slot in slots for new in sorted(pairs.get(slot.value, ())) if new != slot.value]
    for count in range(1, _MOST_FIELDS + 1):
        for changes in itertools.combinations(singles, count):
            if len({change.slot.place for change in changes}) == count:
                yield list(changes)


def _odd(shapes: Shapes | None, wanted: Shapes) -> float:
    """How many dims are not as wanted."""
    if shapes is None or shapes.keys() != wanted.keys():
        return float("inf")
    pairs = ((a, b) for name in wanted for a, b in itertools.zip_longest(shapes[name], wanted[name]))
    return float(sum(a != b for a, b in pairs))


def _first_odd(kept: nn.Module, config: Any, wanted: Shapes) -> str:
    shapes = _built(type(kept), config) or {}
    name = next((n for n in wanted if shapes.get(n) != wanted[n]), "")
    return f'{name} is {wanted.get(name)} (alike="equal" gives repeated blocks one width)'


def _same_slot(config: Any, like: Slot) -> Slot:
    return next(slot for slot in slots_of(config) if slot.place == like.place)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.get_default_dtype())


def _take_numbers(model: nn.Module, built: nn.Module, kept: nn.Module) -> None:
    """Give the kept class the numbers that its constructor computes, where it still has the original's."""
    own, original = dict(kept.named_modules()), dict(model.named_modules())
    for path, module in built.named_modules():
        if path in own and path in original:
            before, target = vars(original[path]), own[path].__dict__
            for name, value in vars(module).items():
                present = target.get(name)
                if (
                    type(value) in (int, tuple)
                    and type(value) is type(present)
                    and present == before.get(name) != value
                ):
                    target[name] = value
