"""The configuration from which a model's class builds the pruned shapes, found by trials on the meta device."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.analysis.groups import PinnedWidth
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.capture.checking import is_meta
from fxprune.capture.decisions import asks_sizes
from fxprune.capture.samples import Sample
from fxprune.errors import ProofError, described
from fxprune.keeping.fitting import Held
from fxprune.keeping.running import check_equal
from fxprune.keeping.slots import Slot, factor_slots_of, sizes_of, slots_of, unset_slots_of
from fxprune.util.copies import private_copy

Shapes = dict[str, tuple[int, ...]]
_MOST_BUILDS = 400
_FROM_CONFIG = "the class is built from it"
_MOST_FIELDS = 4  # fields that are changed together in one trial


@dataclass(frozen=True)
class Change:
    """A field of a configuration, and its new value."""

    slot: Slot
    new: float

    def __str__(self) -> str:
        return f"{'.'.join(self.slot.place)} {self.slot.value or None} -> {self.new}"


@dataclass(frozen=True)
class ConfigEdit:
    """Changes of fields of the configuration ``name``, and the tensor dims (``odd``) that it still builds wrong."""

    name: str = ""
    changes: tuple[Change, ...] = ()
    odd: tuple[tuple[str, int], ...] = ()


def find_config_edit(
    graph: ChannelGraph, model: nn.Module, masks: Mapping[Channels, Mask], kept: nn.Module
) -> ConfigEdit:
    """Look for the configuration from which the class builds the pruned shapes; ``kept`` is only read."""
    name = "" if is_meta(model) else _configuration(model)
    if not name:
        return ConfigEdit()
    wanted, config = _shapes(kept), getattr(kept, name)
    changes, shapes = _solved(type(kept), config, sizes_of(graph, masks), wanted)
    return ConfigEdit(name, tuple(changes), tuple(_wrong_dims(shapes, wanted)))


def fieldless(graph: ChannelGraph, masks: Mapping[Channels, Mask], edit: ConfigEdit) -> Held:
    """The groups whose width no field of the configuration determines; empty if none of them is narrowed."""
    odd, found = set(edit.odd), Held()
    for group in graph.groups:
        member = next((m for m in group.members if (m.tensor, m.dim) in odd), None)
        if member is not None:
            reason = f"keep_class: no field of {edit.name} says this width"
            found[group] = PinnedWidth(member.tensor, member.dim, group.size, reason, _FROM_CONFIG)
    return found if any(not masks[group.variable].all() for group in found) else {}


def without_fieldless(held: Held) -> Held:
    """The held groups without those of :func:`fieldless`."""
    return {group: pin for group, pin in held.items() if pin.cause != _FROM_CONFIG}


def configure(
    graph: ChannelGraph, model: nn.Module, pruned: nn.Module, kept: nn.Module, own: Sample, edit: ConfigEdit
) -> list[str]:
    """Compare a kept class with the proven graph; returns notes for the report. Raises ProofError: outputs differ."""
    if is_meta(model):
        return []
    more = [own.with_batch(own.batch_size + 1)] if own.batch_size is not None else []
    samples = [own, *more, *own.others, *(specialization.sample for specialization in graph.captured.specializations)]
    samples = [replace(sample, others=()).with_values(0) for sample in samples]
    check_equal(kept, pruned, samples)
    asks = any(asks_sizes(mode.graph) for mode in graph.captured.everything())
    other = "code of the class that only calls with other sizes or arguments run is not proven" if asks else ""
    words = [other, _configured(model, kept, edit, pruned, samples), _quantised(kept, edit.name)]
    return [word for word in words if word]


def _quantised(kept: nn.Module, name: str) -> str:
    """Which attributes to clear if a model with plain weights still describes itself as quantised; else empty."""
    holders = {"": kept, **({f"{name}.": getattr(kept, name)} if name else {})}
    plain = all(type(parameter) is nn.Parameter and parameter.is_floating_point() for parameter in kept.parameters())
    said = [
        f"model.{ahead}{key}"
        for ahead, holder in holders.items()
        for key, value in vars(holder).items()
        if "quantiz" in key and value and not isinstance(value, (nn.Module, torch.Tensor)) and not callable(value)
    ]
    if not said or not plain:
        return ""
    return (
        "the model says of itself that it is quantised, and its weights are plain numbers: where its library refuses "
        f"to save it, write {' = '.join(said)} = None first"
    )


def _configured(model: nn.Module, kept: nn.Module, edit: ConfigEdit, graph: nn.Module, samples: list[Sample]) -> str:
    """Change the configuration of a kept class so that its class builds it; returns words for the report, or none.

    The model that the class then builds is compared with the proven ``graph`` on ``samples``.
    """
    name, found = edit.name, edit.changes
    if not name:
        return ""
    config = getattr(kept, name)
    if edit.odd:
        return _why_none(kept, edit)
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
    """The error of a configuration's class if it is constructed with these fields; empty if there is none."""
    try:
        names = inspect.signature(type(config)).parameters
        type(config)(**{name: copy.deepcopy(getattr(config, name)) for name in names if hasattr(config, name)})
    except Exception as error:  # the constructor is the user's own code: it may raise anything
        return described(error)
    return ""


def _built(cls: type[nn.Module], config: Any) -> Shapes | None:
    """The shapes that a class builds from a configuration; None if it refuses the configuration."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return _shapes(cls(copy.deepcopy(config)))
    except Exception:  # the constructor is the user's own code: it may raise anything
        return None


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _solved(cls: Any, config: Any, pairs: Mapping[int, set[int]], wanted: Shapes) -> tuple[list[Change], Shapes]:
    """The changes of fields that come nearest to the wanted shapes, found a few at a time; and the shapes built."""
    trial, done = copy.deepcopy(config), list[Change]()
    shapes = _built(cls, trial)
    while odd := _wrong_dims(shapes, wanted):
        tries = _tries(trial, pairs, {change.slot.place for change in done}, {wanted[name][dim] for name, dim in odd})
        best = _best(cls, trial, tries, len(odd), wanted)
        if not best:
            break
        for change in best:
            done.append(Change(_same_slot(config, change.slot), change.new))
            change.slot.set(change.new)
        shapes = _built(cls, trial)
    return done, shapes or {}


def _best(cls: Any, config: Any, tries: Iterator[list[Change]], odd: int, wanted: Shapes) -> list[Change]:
    """The changes of the fewest fields that leave the fewest wrong dims, fewer than ``odd``."""
    best: list[Change] = []
    for changes in itertools.islice(tries, _MOST_BUILDS):
        if odd == 0 or (best and len(changes) > len(best)):
            break
        olds = [change.slot.value for change in changes]
        for change in changes:
            change.slot.set(change.new)
        fewer = len(_wrong_dims(_built(cls, config), wanted))
        for change, old in zip(changes, olds, strict=True):
            change.slot.set(old)
        if fewer < odd:
            odd, best = fewer, changes
    return best


def _tries(
    config: Any, pairs: Mapping[int, set[int]], taken: set[tuple[str, ...]], odd: set[int]
) -> Iterator[list[Change]]:
    """Candidate changes, the fewest fields first; ``odd``: the sizes that are not built yet."""
    slots = [slot for slot in slots_of(config) if slot.place not in taken and slot.value > 1]
    singles = [Change(slot, new) for slot in slots for new in sorted(pairs.get(slot.value, ())) if new != slot.value]
    unset = [slot for slot in unset_slots_of(config) if slot.place not in taken]
    factors = [slot for slot in factor_slots_of(config) if slot.place not in taken]
    shares = sorted({new / old for old, kept in pairs.items() for new in kept if new != old})
    yield from ([change] for change in singles)
    yield from ([Change(slot, new)] for slot in unset for new in sorted(odd))
    yield from ([Change(slot, slot.value * share)] for slot in factors for share in shares)
    for count in range(2, _MOST_FIELDS + 1):
        for changes in itertools.combinations(singles, count):
            if len({change.slot.place for change in changes}) == count:
                yield list(changes)


def _wrong_dims(shapes: Shapes | None, wanted: Shapes) -> list[tuple[str, int]]:
    """The dims that differ from the wanted ones: all dims if the class builds nothing, or other tensors."""
    if shapes is None or shapes.keys() != wanted.keys() or any(len(shapes[n]) != len(wanted[n]) for n in wanted):
        shapes = {name: (-1,) * len(size) for name, size in wanted.items()}
    return [(n, dim) for n in wanted for dim, (a, b) in enumerate(zip(shapes[n], wanted[n], strict=True)) if a != b]


def _why_none(kept: nn.Module, edit: ConfigEdit) -> str:
    name, dim = edit.odd[0]
    width, others = kept.state_dict()[name].shape[dim], len({odd for odd, _ in edit.odd}) - 1
    field = _field_behind(type(kept), getattr(kept, edit.name), name, dim)
    behind = f", which the class makes of {field}" if field else ""
    return (
        f"no values of {edit.name} make {type(kept).__name__} build these shapes: none makes dim {dim} of {name} "
        f'{width} wide{behind} ({others} more tensors are so). With alike="equal", ratio={{"*": 0.25}} and round_to=1 '
        "all widths lose one share, which fields can say; a width that none can say goes with exclude"
    )


def _field_behind(cls: type[nn.Module], config: Any, name: str, dim: int) -> str:
    """The field of a configuration that determines a dim, if the class also builds with another number there."""
    trial = copy.deepcopy(config)
    usual = _built(cls, trial) or {}
    for slot in slots_of(trial):
        old = slot.value
        slot.set(2 * old)
        sizes = (_built(cls, trial) or usual).get(name, ())
        slot.set(old)
        if name in usual and sizes != usual[name] and len(sizes) > dim and sizes[dim] != usual[name][dim]:
            return ".".join(slot.place)
    return ""


def _same_slot(config: Any, like: Slot) -> Slot:
    every = (*slots_of(config), *unset_slots_of(config), *factor_slots_of(config))
    return next(slot for slot in every if slot.place == like.place)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.get_default_dtype())


def _take_numbers(model: nn.Module, built: nn.Module, kept: nn.Module) -> None:
    """Copy numbers that the constructor computes to the kept class, where it still has the original's."""
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
