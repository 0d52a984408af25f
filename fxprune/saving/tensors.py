"""The tensors of a network: what each is (parameter, buffer, constant), which are one tensor under several names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import ArtefactError
from fxprune.saving.layers import is_container, submodule


@dataclass(frozen=True)
class TensorEntry:
    """One name of one tensor.

    Attributes:
        name: dotted name, as in the state dict.
        kind: ``"parameter"``, ``"buffer"`` (part of the state dict) or ``"constant"`` (a buffer that is not).
        requires_grad: whether a parameter is trained.
        tied_to: the first name of the same tensor, where this name is a further one.
    """

    name: str
    kind: str
    requires_grad: bool = False
    tied_to: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON data; what has its usual value is left out."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "parameter" and not self.requires_grad:
            data["requires_grad"] = False
        if self.tied_to is not None:
            data["tied_to"] = self.tied_to
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TensorEntry:
        """Read what :meth:`as_dict` wrote."""
        kind = data["kind"]
        if kind not in ("parameter", "buffer", "constant"):
            raise ArtefactError(f"the graph lists {data['name']!r:.80} as a {kind!r:.80}, which is no kind of tensor")
        return cls(data["name"], kind, kind == "parameter" and data.get("requires_grad", True), data.get("tied_to"))


def named_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every name of every tensor with its kind, each module visited once: ``(name, kind, tensor)``."""
    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, "parameter", parameter
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield prefix + name, "constant" if name in module._non_persistent_buffers_set else "buffer", buffer
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, "constant", value


def inventory(model: nn.Module) -> list[TensorEntry]:
    """Every name of every tensor of a network, with ties marked.

    Raises:
        ArtefactError: a tensor has no values (meta device), or two tensors overlap in memory without being one.
    """
    entries = []
    first_name: dict[int, str] = {}
    owner: dict[int, str] = {}
    for name, kind, tensor in named_tensors(model):
        if tensor.is_meta:
            raise ArtefactError(f"{name!r} is on the meta device and has no values to save: load weights first")
        tied_to = first_name.get(id(tensor))
        first_name.setdefault(id(tensor), name)
        if tied_to is None and tensor.numel():
            _check_own_storage(name, tensor, owner)
        entries.append(TensorEntry(name, kind, tensor.requires_grad, tied_to))
    return entries


def _check_own_storage(name: str, tensor: torch.Tensor, owner: dict[int, str]) -> None:
    storage = tensor.untyped_storage().data_ptr()
    if storage in owner:
        raise ArtefactError(
            f"{name!r} and {owner[storage]!r} are views of the same memory but not the same tensor, which a saved "
            "network cannot express: clone one of them"
        )
    owner[storage] = name


def attach(model: nn.Module, entry: TensorEntry, tensor: torch.Tensor, *, foreign: bool = False) -> None:
    """Put a tensor (or the parameter it is tied to) at its name in the network, in the place its layer keeps for it.

    ``foreign``: the module is of a class from outside torch, which has no places yet.

    Raises:
        ArtefactError: the layer has no such tensor, or one of another shape.
    """
    path, _, name = entry.name.rpartition(".")
    module = submodule(model, path)
    slots: dict[str, Any] = module._parameters if entry.kind == "parameter" else module._buffers
    if foreign:
        _attach_foreign(module, entry, tensor)
        return
    expected = slots.get(name)
    if expected is not None and expected.shape != tensor.shape:
        raise ArtefactError(
            f"{entry.name!r} has shape {tuple(tensor.shape)}, but its layer {module} wants {tuple(expected.shape)}"
        )
    if expected is not None and _kind_of(expected) != _kind_of(tensor):
        raise ArtefactError(f"{entry.name!r} holds {tensor.dtype}, but its layer {module} wants {expected.dtype}")
    turned_off = name in slots and expected is None
    if turned_off or (name not in slots and hasattr(module, name) and not is_container(module)):
        raise ArtefactError(f"{entry.name!r} has no place in its layer {module}")
    if entry.kind == "parameter":
        module._parameters[name] = _parameter(tensor, entry)
    else:
        module._buffers[name] = tensor
        (set.discard if entry.kind == "buffer" else set.add)(module._non_persistent_buffers_set, name)


def _kind_of(tensor: torch.Tensor) -> str:
    """What arithmetic a tensor takes part in; precision is the owner's choice."""
    if tensor.is_floating_point() or tensor.is_complex():
        return "float"
    return "bool" if tensor.dtype is torch.bool else "integer"


def _parameter(tensor: torch.Tensor, entry: TensorEntry) -> nn.Parameter:
    if entry.requires_grad and _kind_of(tensor) != "float":
        raise ArtefactError(f"{entry.name!r} holds {tensor.dtype}, and only floating-point numbers can be trained")
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, entry.requires_grad)


def _attach_foreign(module: nn.Module, entry: TensorEntry, tensor: torch.Tensor) -> None:
    # Not by the methods of the class, which may be its own.
    name = entry.name.rpartition(".")[2]
    if entry.kind == "parameter":
        module._parameters[name] = _parameter(tensor, entry)
    elif entry.kind == "buffer":
        module._buffers[name] = tensor
    else:
        module._buffers[name] = tensor
        module._non_persistent_buffers_set.add(name)
