"""Rules as data: what an op does to axes, and how its literals change when axes shrink.

A rule has two halves that stand side by side. ``axes`` reads the input axes from a :class:`~fxprune.rules.call.Call`,
ties or pins them and sets the output axes. ``repair`` runs when the smaller graph is written, with the same call and a
:class:`~fxprune.rules.repair.Repair` that knows the kept sizes; without one, the op's arguments need no change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from fxprune.rules.call import Call
    from fxprune.rules.repair import Repair

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
    """A torch.nn module written as a call of a rule.

    ``arguments(module)`` gives the rule's arguments after the module's own inputs; a string value that starts with "."
    names a parameter or buffer. ``attributes`` maps a rule's argument to the module attribute that repeats it.
    """

    rule: str
    arguments: Callable[[Any], dict[str, Any]]
    attributes: tuple[tuple[str, str], ...] = ()


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


def repairs(names: str) -> Callable[[RepairHalf], RepairHalf]:
    """Register the repair half of the ops in ``names``."""

    def register(repair: RepairHalf) -> RepairHalf:
        for name in names.split():
            _RULES[name].repair = repair
        return repair

    return register


def module_form(cls: type[nn.Module], form: ModuleForm) -> None:
    """Say which rule a module class follows."""
    _MODULES[cls.forward] = form
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
    return next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.") and "forward" in dir(c))


def find_module_form(module: nn.Module) -> ModuleForm | None:
    """The form of a module that runs the forward of a known torch.nn class on plain parameters."""
    if hasattr(module, "parametrizations") or module._forward_pre_hooks or module._forward_hooks:
        return None
    if "forward" in vars(module):  # a forward of its own, put on the instance
        return None
    return _MODULES.get(type(module).forward)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module stays one call of the graph."""
    return find_module_form(module) is not None
