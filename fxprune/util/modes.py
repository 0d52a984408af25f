"""Training and eval mode of each module, as a model's own ``train()`` and ``eval()`` set them.

A class may keep its batch norms in eval mode, or never train at all. No rule can tell what it does, so it is tried: the
calls are made on a copy of the model, and their effect on each ``training`` flag is recorded as data. A network without
the original class can then do the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from fxprune.util.paths import PartsModule, named_modules, parts_of

# The calls that switch modes, and the mode that an ordinary module takes in each.
CALLS = {"train": True, "train(False)": False, "eval": False}
# By part and call: the flags of modules below the part that differ from the mode of the call; None: the flag stays.
Effects = Mapping[str, Mapping[str, Mapping[str, "bool | None"]]]


def flags_of(module: nn.Module) -> dict[str, bool]:
    """The ``training`` flag of every module by path."""
    return {path: part.training for path, part in named_modules(module)}


def set_flags(module: nn.Module, flags: Mapping[str, bool]) -> None:
    """Set the ``training`` flags of modules by path; modules that are not named keep theirs."""
    for path, part in named_modules(module) if flags else ():
        if flags.get(path, part.training) is not part.training:
            part.training = flags[path]


def switch(module: nn.Module, call: str) -> None:
    """Make one of the :data:`CALLS` on a module."""
    if not has_own_modes(module):
        _set_mode(module, CALLS[call])
    elif call == "eval":
        module.eval()
    else:
        module.train(CALLS[call])


def _set_mode(module: nn.Module, training: bool) -> None:
    """What ``nn.Module.train`` does, several times as fast where no part does it in a way of its own."""
    parts = parts_of(module)
    if _holds_its_flag(cast(Any, type(module))) and not any(map(has_own_modes, parts[1:])):
        for part in parts:
            vars(part)["training"] = training
    else:
        nn.Module.train(module, training)


def own_modes(copy: nn.Module) -> dict[str, dict[str, dict[str, bool | None]]]:
    """The effects of each part that overrides ``train`` or ``eval``. Raises ValueError: no fixed flags describe it."""
    modules = dict(named_modules(copy))
    flags = flags_of(copy)
    found = {path: _effects(modules, path) for path, part in modules.items() if has_own_modes(part)}
    set_flags(copy, flags)
    return {path: effects for path, effects in found.items() if effects}


def has_own_modes(part: nn.Module) -> bool:
    """Whether a module, or its class, overrides how modes are switched."""
    cls: Any = type(part)
    return not _switches_ordinarily(cls) or "train" in vars(part) or "eval" in vars(part)


@functools.lru_cache(maxsize=4096)
def _switches_ordinarily(cls: Any) -> bool:
    return cls.train is nn.Module.train and cls.eval is nn.Module.eval and _holds_its_flag(cls)


@functools.lru_cache(maxsize=4096)
def _holds_its_flag(cls: Any) -> bool:
    """Whether setting ``training`` sets the attribute alone, and the children are those in the table of modules."""
    sets = cls.__setattr__ in (nn.Module.__setattr__, PartsModule.__setattr__)
    children = cls.children is nn.Module.children and cls.named_children is nn.Module.named_children
    return sets and children and not isinstance(getattr(cls, "training", None), property)


def _effects(modules: Mapping[str, nn.Module], path: str) -> dict[str, dict[str, bool | None]]:
    """By call, the flags below a part that differ from those of an ordinary module."""
    inside = {f"{path}.{name}".strip("."): name for name, _ in modules[path].named_modules()}
    effects: dict[str, dict[str, bool | None]] = {}
    for call, mode in CALLS.items():
        after = _after(modules, path, call)
        if after != _after(modules, path, call):
            raise ValueError(f"{call} of {path or 'the model'} sets other modes each time")
        unlike = {name: flag for name, flag in after.items() if flag is not (mode if name in inside else None)}
        if not unlike.keys() <= inside.keys():
            raise ValueError(f"{call} of {path} sets the mode of {next(iter(unlike.keys() - inside.keys()))}, too")
        effects[call] = {inside[name]: flag for name, flag in unlike.items()}
    return {call: unlike for call, unlike in effects.items() if unlike}


def _after(modules: Mapping[str, nn.Module], path: str, call: str) -> dict[str, bool | None]:
    """The flag of every module after a call; None where the call leaves the flag as it was."""
    found = []
    for start in (False, True):
        for module in modules.values():
            module.training = start
        switch(modules[path], call)
        found.append([module.training for module in modules.values()])
    if any(low and not high for low, high in zip(*found, strict=True)):
        raise ValueError(f"{call} of {path or 'the model'} turns modes over")
    return {name: low if low is high else None for name, low, high in zip(modules, *found, strict=True)}


def follow(part: nn.Module, call: str, effects: Mapping[str, Mapping[str, bool | None]]) -> None:
    """Make one of the :data:`CALLS` on a part, with the recorded effects of its original class."""
    kept = effects.get(call, {})
    before = flags_of(part) if kept else {}
    _set_mode(part, CALLS[call])
    set_flags(part, {path: before[path] if flag is None else flag for path, flag in kept.items() if path in before})


class _OwnMode:
    """The ``train`` and ``eval`` of a part whose original overrode them."""

    def __init__(self, part: nn.Module, effects: Mapping[str, Mapping[str, bool | None]]) -> None:
        self.part, self.effects = part, effects

    def train(self, mode: bool = True) -> nn.Module:
        follow(self.part, "train" if mode else "train(False)", self.effects)
        return self.part

    def eval(self) -> nn.Module:
        follow(self.part, "eval", self.effects)
        return self.part


def give_own_modes(module: nn.Module, effects: Effects) -> None:
    """Let the parts below ``module`` switch modes as their originals did."""
    parts = dict(named_modules(module)) if effects else {}
    for path, own in effects.items():
        if path and path in parts:
            held = _OwnMode(parts[path], own)
            parts[path].__dict__.update(train=held.train, eval=held.eval)
