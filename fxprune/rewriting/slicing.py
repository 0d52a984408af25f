"""New tensors and modules that hold what is kept; nothing shares storage with the original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.axes.elements import Mask, kept_mask
from fxprune.axes.expressions import Axis, Channels
from fxprune.module_copies import copied_attributes
from fxprune.rules.registry import torch_class

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def kept_indices(axes: Iterable[Axis], masks: Mapping[Channels, Mask]) -> tuple[torch.Tensor | None, ...]:
    """Kept indices of every dim of a tensor, None where all stay."""
    indices: list[torch.Tensor | None] = []
    for axis in axes:
        mask = kept_mask(axis, masks)
        indices.append(None if bool(mask.all()) else torch.from_numpy(np.flatnonzero(mask)))
    return tuple(indices)


def sliced(tensor: torch.Tensor, indices: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """A new tensor with the kept entries; a parameter stays a parameter with the same ``requires_grad``."""
    value = tensor.detach()
    for dim, index in enumerate(indices):
        if index is not None:
            value = value.index_select(dim, index.to(value.device))
    if value.data_ptr() == tensor.data_ptr():
        value = value.clone()
    layout = _CHANNELS_LAST.get(tensor.dim())
    if layout is not None and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
        value = value.contiguous(memory_format=layout)
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def rebuilt(module: nn.Module, tensors: Mapping[int, torch.Tensor], attributes: Mapping[str, Any]) -> nn.Module:
    """A copy of a torch.nn module over new tensors (by id of the old ones) with changed attributes.

    A user's subclass that only inherits the forward becomes the torch.nn class itself.
    """
    cls = type(module) if type(module).__module__.startswith("torch.nn.") else torch_class(module)
    twin = cls.__new__(cls)
    own = {name: value for name, value in vars(module).items() if name not in ("train", "eval")}
    vars(twin).update(copied_attributes(own, dict(tensors)))
    for name, value in attributes.items():
        if hasattr(twin, name):
            setattr(twin, name, value)
    return twin
