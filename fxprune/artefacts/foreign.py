"""Modules of classes from outside torch: kept as their class's import path and their attributes as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.artefacts.modules import build_layer, describe_layer
from fxprune.artefacts.states import StateReader, StateWriter, read_attributes
from fxprune.errors import ArtefactError

__all__ = ["build_foreign", "describe_foreign", "fill", "is_plain_layer"]

# What every module has; beside modules and tensors it holds hooks and the mode, and none of it may come from a file.
_OWN = frozenset(vars(nn.Module()))
_SLOTS = ("_parameters", "_buffers", "_modules")
_METHODS = frozenset(name for name in dir(nn.Module) if callable(getattr(nn.Module, name)))


def is_plain_layer(path: str, module: nn.Module) -> bool:
    """Whether a layer of torch is fully told by its constructor arguments, so that code around it finds it whole."""
    try:
        return set(vars(build_layer(path, describe_layer(path, module)))) == set(vars(module))
    except ArtefactError:
        return False


def describe_foreign(path: str, module: nn.Module, writer: StateWriter) -> dict[str, Any]:
    """Import path, attributes and empty places of a module, as JSON data.

    Raises:
        ArtefactError: the class cannot be imported by its name, or an attribute cannot be written down.
    """
    name = path or "the network"
    hooks = [key for key in _OWN if key.endswith("hooks") and vars(module).get(key)]
    if hooks:
        raise ArtefactError(f"cannot save {name}: it has hooks, which are code and not data: remove them first")
    kind = writer.need(type(module), f"the class of {name}")
    data: dict[str, Any] = {"kind": kind}
    values = plain_attributes(module)
    _check_methods(values, f"cannot save {name}")
    if attributes := writer.attributes(values, name):
        data["state"] = attributes
    absent = {slot: [k for k, v in vars(module)[slot].items() if v is None] for slot in _SLOTS}
    if any(absent.values()):
        data["absent"] = {slot: names for slot, names in absent.items() if names}
    return data


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside tensors, submodules and what every module has."""
    skipped = set(_OWN)
    if isinstance(module, GraphModule):
        skipped |= {*vars(GraphModule(nn.Module(), torch.fx.Graph())), "_kept_out", "_graphs", "_others", "_chosen"}
        skipped |= {"_class_name", "meta"}
    values = {key: value for key, value in vars(module).items() if key not in skipped and key != "meta"}
    return {key: value for key, value in values.items() if not isinstance(value, torch.Tensor)}


def build_foreign(data: Mapping[str, Any], found: Mapping[str, Any]) -> nn.Module:
    """An empty module of the class, made without running its constructor.

    Raises:
        ArtefactError: the import path leads to something else than a module class.
    """
    kind = found.get(data["kind"])
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ArtefactError(f"{data['kind']!r:.80} is no class of modules that it may be made of")
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    for slot, names in data.get("absent", {}).items():
        if slot not in _SLOTS:
            raise ArtefactError(f"{slot!r:.80} is no place for tensors or modules")
        vars(module)[slot].update(dict.fromkeys(names))
    return module


def fill(module: nn.Module, state: Mapping[str, Any], reader: StateReader) -> None:
    """Give a module its attributes.

    Raises:
        ArtefactError: an attribute is malformed, or one that every module keeps for itself.
    """
    if own := sorted(_OWN & set(state)):
        raise ArtefactError(f"an attribute called {own[0]!r} cannot be given to a module")
    values = read_attributes(state, reader)
    _check_methods(values, "an attribute is malformed")
    vars(module).update(values)


def _check_methods(values: Mapping[str, Any], trouble: str) -> None:
    """What a module does is its class's affair: no attribute may stand in for a method."""
    if replaced := sorted(name for name, value in values.items() if name in _METHODS and callable(value)):
        raise ArtefactError(f"{trouble}: its method {replaced[0]!r} is replaced by an attribute")
