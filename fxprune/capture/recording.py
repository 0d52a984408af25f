"""A real run of the model, watched: what each submodule was called with and gave back, as meta tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.capture.clone import meta_like
from fxprune.capture.samples import Sample
from fxprune.util.copies import private_copy

_PLAIN = (torch.Tensor, int, float, bool, str, type(None), torch.dtype, torch.device)


@dataclass
class Calls:
    """Calls of one submodule: arguments of the first, results of all, and the modules that were running at each.

    ``macs``: multiply-accumulates of all calls together.
    """

    sample: Sample
    macs: float = 0.0
    results: list[Any] = field(default_factory=list)
    stacks: list[tuple[str, ...]] = field(default_factory=list)


def record_calls(model: nn.Module, sample: Sample, *, training: bool = False) -> dict[str, Calls]:
    """Run a private copy on real values and note every submodule's calls by path.

    Raises:
        Exception: whatever the model raises on its sample.
    """
    twin = private_copy(model).train(training)
    found: dict[str, Calls] = {}
    stack: list[str] = []
    counter = FlopCounterMode(display=False)
    for path, module in twin.named_modules():

        def before(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            calls = found.setdefault(path, Calls(Sample(*_meta((args, kwargs)))))
            calls.stacks.append(tuple(stack))
            calls.macs -= counter.get_total_flops() / 2
            stack.append(path)

        def after(_: nn.Module, __: Any, result: Any, path: str = path) -> None:
            stack.pop()
            found[path].results.append(_meta(result))
            found[path].macs += counter.get_total_flops() / 2

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    # Code of training mode may hang hooks on gradients, which there must be.
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training), counter:
        sample.call(twin)
    return found


def is_plain(value: Any) -> bool:
    """Whether a value is tensors and literals in lists, tuples and dicts."""
    return all(isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves(value))


def only_called_inside(recorded: dict[str, Calls], path: str) -> bool:
    """Whether no submodule of ``path`` was ever called but by ``path`` itself."""
    inner = (calls for name, calls in recorded.items() if name.startswith(f"{path}."))
    return all(path in stack for calls in inner for stack in calls.stacks)


def _meta(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, meta_like, value)
