"""The registry of rules, and the binding of a node's arguments to their names in torch's documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.util.inheriting import mro, runs_as

if TYPE_CHECKING:
    from fxprune.rules.call import Call
    from fxprune.rules.repair import Repair


MISSING: Any = object()
# The other names of each argument. Where a name has several meanings, the first that the signature has counts.
_OTHER_NAMES = {
    "dim0": "axis0",
    "dim1": "axis1",
    "dims": "axes",
    "input": "mat1 self x",
    "mat1": "batch1 mat",
    "max": "a_max",
    "min": "a_min",
    "other": "exponent mat2 tensor vec vec2 y",
    "repeats": "dims repeat",
    "size": "shape",
    "split_size_or_sections": "chunks indices indices_or_sections sections split_size split_sizes",
    "tensors": "arrays",
    "mat2": "batch2 vec",
    "weight": "indices",
}
_ALIASES: dict[str, tuple[str, ...]] = {}
for _argument, _names in _OTHER_NAMES.items():
    for _name in _names.split():
        _ALIASES[_name] = (*_ALIASES.get(_name, ()), _argument)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A named argument; ``packed`` takes either one sequence or all remaining positional arguments."""

    name: str
    packed: bool
    default: Any


@cache
def parse(signature: str) -> tuple[Parameter, ...]:
    """``"input, *size, dim=0"`` as parameters."""
    parameters = []
    for text in filter(None, (part.strip() for part in signature.split(","))):
        name, _, default = text.partition("=")
        parameters.append(Parameter(name.lstrip("*"), name.startswith("*"), _literal(default)))
    return tuple(parameters)


def _literal(text: str) -> Any:
    if not text:
        return MISSING
    constants = {"None": None, "True": True, "False": False}
    if text in constants:
        return constants[text]
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def bind(signature: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Argument values by name, with defaults for missing ones. Surplus positional arguments are left out."""
    bound: dict[str, Any] = {}
    rest = list(args)
    for parameter in parse(signature):
        if parameter.packed and rest:
            bound[parameter.name] = rest[0] if isinstance(rest[0], (list, tuple)) else tuple(rest)
            rest = rest[1:] if isinstance(rest[0], (list, tuple)) else []
        elif rest:
            bound[parameter.name] = rest.pop(0)
        elif parameter.default is not MISSING:
            bound[parameter.name] = parameter.default
    for name, value in kwargs.items():
        bound[_known(signature, name)] = value
    return bound


def replace(
    signature: str, args: Sequence[Any], kwargs: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with ``changes`` in the places where the call passed them, or as keywords if it did not."""
    new_args, new_kwargs = list(args), dict(kwargs)
    pending = dict(changes)
    for name in kwargs:
        if (known := _known(signature, name)) in pending:
            new_kwargs[name] = pending.pop(known)
    for position, parameter in enumerate(parse(signature)):
        if parameter.name not in pending or position >= len(args):
            continue
        value = pending.pop(parameter.name)
        if parameter.packed and not isinstance(args[position], (list, tuple)):
            new_args[position:] = list(value)
        else:
            new_args[position] = value
    new_kwargs.update(pending)
    return tuple(new_args), new_kwargs


def _known(signature: str, name: str) -> str:
    names = {p.name for p in parse(signature)}
    return name if name in names else next((n for n in _ALIASES.get(name, ()) if n in names), name)


AxesHalf = Callable[["Call"], None]
RepairHalf = Callable[["Repair"], None]


@dataclass(slots=True)
class Rule:
    """``signature`` names the op's arguments as torch documents them; ``*name`` takes the rest or one sequence."""

    signature: str
    axes: AxesHalf
    repair: RepairHalf | None = None


@dataclass(frozen=True, slots=True)
class ModuleForm:
    """A torch.nn module written as a call of a rule."""

    rule: str
    names: tuple[str, ...]  # the rule's arguments that are attributes of the module
    more: Callable[[Any], dict[str, Any]]  # further arguments; a string that starts with "." names a parameter
    stored: Mapping[str, str]  # for arguments that a repair may change, the attributes that hold them

    def arguments(self, module: nn.Module) -> dict[str, Any]:
        """The rule's arguments after the module's own inputs, with names of parameters and buffers as in ``more``."""
        held = {name: getattr(module, name, None) for name in self.names}
        return {n: f".{n}" if isinstance(v, torch.Tensor) else v for n, v in held.items()} | self.more(module)


_RULES: dict[str, Rule] = {}
_MODULES: dict[Callable[..., Any], ModuleForm] = {}
_MODULE_CLASSES: list[type[nn.Module]] = []


def rule(names: str, signature: str) -> Callable[[AxesHalf], AxesHalf]:
    """Register the axes half of the ops in ``names`` (separated by blanks)."""

    def register(axes: AxesHalf) -> AxesHalf:
        for name in names.split():
            assert name not in _RULES, name
            _RULES[name] = Rule(signature, axes)
        return axes

    return register


def pinned(names: str, signature: str, why: str, result: str) -> None:
    """Register ops whose inputs are pinned, with the reason ``why``, and whose results are fixed, with ``result``."""

    @rule(names, signature)
    def axes(call: Call) -> None:
        call.pin_inputs(why)
        call.output_fixed(result)


def repairs(names: str) -> Callable[[RepairHalf], RepairHalf]:
    """Register the repair half of the ops in ``names``."""

    def register(repair: RepairHalf) -> RepairHalf:
        for name in names.split():
            _RULES[name].repair = repair
        return repair

    return register


def module_form(
    cls: type[nn.Module],
    rule: str,
    names: str = "",
    more: Callable[[Any], dict[str, Any]] = lambda module: {},
    stored: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Register how a module class is a call of a rule; see :class:`ModuleForm`."""
    _MODULES[cls.forward] = ModuleForm(rule, tuple(names.split()), more, stored)
    _MODULE_CLASSES.append(cls)


def module_forms() -> tuple[type[nn.Module], ...]:
    """Every module class with a form; classes that inherit such a forward follow it too."""
    return tuple(_MODULE_CLASSES)


def find_rule(name: str) -> Rule | None:
    """The rule of a canonical op name."""
    return _RULES.get(name)


def has_rule(name: str) -> bool:
    """Whether an op of that canonical name stays one node of the graph."""
    return name in _RULES


def rule_names() -> tuple[str, ...]:
    """Every op with a rule."""
    return tuple(sorted(_RULES))


def torch_class(module: nn.Module) -> type[nn.Module]:
    """The torch.nn class whose forward a leaf module runs."""
    return _torch_class(mro(module)[0])


@lru_cache(maxsize=4096)
def _torch_class(cls: type) -> type[nn.Module]:
    return next(c for c in cls.__mro__ if c.__module__.startswith("torch.nn.") and hasattr(c, "forward"))


def find_module_form(module: nn.Module) -> ModuleForm | None:
    """The form of a module that runs the forward of a known torch.nn class on plain parameters, else None."""
    if "parametrizations" in module._modules or module._forward_pre_hooks or module._forward_hooks:
        return None
    form = _MODULES.get(type(module).forward)
    return form if form and runs_as(module, torch_class(module)) else None


def is_leaf(module: nn.Module) -> bool:
    """Whether a module stays one call of the graph."""
    return find_module_form(module) is not None
