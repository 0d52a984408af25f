"""A network as an exported program of torch, with the sizes that may change."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.rewriting import PrunedGraphModule
from fxprune.samples import Sample, is_image

__all__ = ["exported_program"]


def exported_program(network: nn.Module, sample: Sample, free: tuple[str, ...]) -> ExportedProgram:
    """The program of one call; ``free`` names which sizes may change: "batch", "resolution".

    Raises:
        Exception: of many types, where torch cannot trace the network with these sizes.
    """
    if isinstance(network, PrunedGraphModule):
        network = network.for_sizes_of(*sample.args, **sample.kwargs).plainly_named()
    _check_names(network)
    bound = inspect.signature(network.forward).bind(*sample.args, **sample.kwargs).arguments
    shapes = {name: pytree.tree_map(lambda leaf: _free_dims(leaf, free), value) for name, value in bound.items()}
    with torch.no_grad():
        return torch.export.export(network, sample.args, sample.kwargs, dynamic_shapes=shapes if free else None)


def _check_names(network: nn.Module) -> None:
    """Refuse names that torch would write into code as they are, in modules whose own code may ask for them."""
    held = (*network.named_modules(), *network.named_parameters(), *network.named_buffers())
    for name in (name for name, _ in held if not re.fullmatch(r"[A-Za-z0-9_.]*", name)):
        raise ExportError(f"{name!r} is no plain name, and torch.export writes names into code that it runs: rename it")


def _free_dims(leaf: Any, free: tuple[str, ...]) -> dict[int, Any] | None:
    if not isinstance(leaf, torch.Tensor):
        return None
    dims = [0] if "batch" in free and leaf.ndim else []
    if "resolution" in free and is_image(leaf):
        dims += [leaf.ndim - 2, leaf.ndim - 1]
    return dict.fromkeys(dims, Dim.AUTO)
