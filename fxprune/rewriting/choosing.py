"""Which of several graphs takes inputs of given sizes: the first whose own checks hold, tried without values.

All but :func:`source` is printed into generated code, so it needs torch alone.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

__all__ = ["number_of_forward", "source"]


def number_of_forward(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """Which of ``forwards`` takes inputs of these sizes; for new ones it is found out once."""
    find = number_once_found
    if "torch._dynamo" in sys.modules:  # torch.compile need not see how it is found out
        find = torch.compiler.disable(find)  # type: ignore[no-untyped-call]
    return find(module, forwards, args, kwargs)


number_of_forward._torchdynamo_disable = True  # type: ignore[attr-defined]


def number_once_found(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """The same, kept by the sizes of the inputs in the module."""
    found: dict[Any, int] = vars(module).setdefault("_chosen", {})
    sizes = (module.training, sizes_of(args), sizes_of(kwargs))
    if sizes not in found:
        # Modes of torch count and record what this thread runs, and this is no part of the network.
        with ThreadPoolExecutor(1) as other_thread:
            found[sizes] = other_thread.submit(first_that_fits, module, forwards, args, kwargs).result()
    return found[sizes]


def sizes_of(value: Any) -> Any:
    """The shapes of all tensors in nested arguments, and other values as they are."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(sizes_of(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, sizes_of(item)) for key, item in value.items())
    return value if isinstance(value, (bool, int, float, str)) else None


def without_values(value: Any) -> Any:
    """Nested arguments with all tensors on the meta device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("meta")
    if isinstance(value, list):
        return [without_values(item) for item in value]
    if type(value) is tuple:
        return tuple(without_values(item) for item in value)
    if isinstance(value, dict):
        return {key: without_values(item) for key, item in value.items()}
    return value


def first_that_fits(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """Which of ``forwards`` does not refuse the arguments; 0 where all do.

    They run over a copy of the module's parts on the meta device, which has sizes and no values.
    """
    tensors = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    parts = nn.Module.__new__(type(module))  # of its class, as generated code may reach parts through the class
    nn.Module.__init__(parts)
    for held in ("_modules", "_parameters", "_buffers"):
        vars(parts)[held] = copy.deepcopy(getattr(module, held), memo)
    unsure = []
    for number, forward in enumerate(forwards):
        try:
            with torch.no_grad():
                forward(parts, *without_values(args), **without_values(kwargs))
        except AssertionError:
            continue
        except Exception:  # what cannot be run without values is left to the real run
            unsure.append(number)
            continue
        return number
    return unsure[0] if unsure else 0


def source() -> str:
    """The source of :func:`number_of_forward` and of what it calls."""
    functions = (number_of_forward, number_once_found, sizes_of, without_values, first_that_fits)
    parts = [inspect.getsource(function) for function in functions]
    parts[0] += "\n\nnumber_of_forward._torchdynamo_disable = True\n"
    return "\n\n".join(parts)
