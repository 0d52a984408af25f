"""A real run of the model that records the arguments and results of each submodule as meta tensors."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture.clone import meta_like
from fxprune.capture.samples import Sample
from fxprune.errors import CaptureError
from fxprune.util.copies import private_copy

_PLAIN = (torch.Tensor, int, float, bool, str, type(None), torch.dtype, torch.device)


@dataclass
class Calls:
    """Calls of one submodule: the arguments of the first, all results, and the modules that were running at each.

    ``macs``: multiply-accumulates of all calls together. ``asks_layout``: whether its own code asked a tensor for its
    memory format.
    """

    sample: Sample
    macs: float = 0.0
    asks_layout: bool = False
    results: list[Any] = field(default_factory=list)
    stacks: list[tuple[str, ...]] = field(default_factory=list)


class _Questions(TorchFunctionMode):
    """Notes the modules whose own code asks for memory formats."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.asking: set[str] = set()
        self._stack = stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = getattr(func, "__name__", "") in ("is_contiguous", "stride") and self._stack
        if asks and not sys._getframe(1).f_globals.get("__name__", "").startswith(("torch.", "fxprune.")):
            self.asking.add(self._stack[-1])
        return func(*args, **kwargs or {})


def record_calls(model: nn.Module, sample: Sample, *, training: bool = False) -> dict[str, Calls]:
    """Run a private copy on real values and record each submodule's calls by path; its errors pass through."""
    twin = private_copy(model).train(training)
    found: dict[str, Calls] = {}
    stack: list[str] = []
    # Torch loads a compiler of kernels with it.
    from torch.utils.flop_counter import FlopCounterMode

    counter, questions = FlopCounterMode(display=False), _Questions(stack)
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
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training), counter, questions:
        sample.call(twin)
    for path in questions.asking:
        found[path].asks_layout = True
    return found


def is_plain(value: Any) -> bool:
    """Whether a value is tensors and literals in lists, tuples and dicts."""
    return all(isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves(value))


def check(path: str, result: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise CaptureError for a call of an opaque module that generated code cannot make."""
    if not is_plain(result):
        raise CaptureError(f"{path} returns an object of its own, which no graph can hold")
    if odd := [name for name in kwargs if not name.isidentifier() or keyword.iskeyword(name)]:
        raise CaptureError(f"{path} is called with an argument named {odd[0]!r}, which generated code cannot write")


def only_called_inside(recorded: dict[str, Calls], path: str) -> bool:
    """Whether submodules of ``path`` were called only while ``path`` itself was running."""
    inner = (calls for name, calls in recorded.items() if name.startswith(f"{path}."))
    return all(path in stack for calls in inner for stack in calls.stacks)


def _meta(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, meta_like, value)
