"""Checks of decisions that always turn out as they did: those on widths alone need not be written."""

from __future__ import annotations

import copy
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.expressions import Axis, Channels, Fixed, inside
from fxprune.capture.decisions import is_check

# Reads of a tensor's dtype, of its memory layout, and of the autocast state around a call.
_SETTINGS = (getattr, "is_contiguous", torch.is_autocast_enabled)


def idle_nodes(source: ChannelGraph, graph: fx.Graph) -> set[fx.Node]:
    """The checks in a captured graph that no input can fail, and the numbers that only these checks read."""
    idle: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if is_check(node):
            if _always_holds(source, graph, node):
                idle.add(node)
        elif node.users and isinstance(node.meta.get("val"), (int, float)) and all(u in idle for u in node.users):
            idle.add(node)
    return idle


def _always_holds(source: ChannelGraph, graph: fx.Graph, check: fx.Node) -> bool:
    (condition,) = check.all_input_nodes
    if condition.op == "placeholder" or isinstance(condition.meta["val"], torch.Tensor):
        return False
    if all(not _varies(source, size) for size in _sizes(check)):
        return True
    sides = [a for a in condition.args if isinstance(a, fx.Node)]
    return condition.target is operator.eq and len(sides) == 2 and all(_is_batch(source, graph, s) for s in sides)


def _sizes(node: fx.Node) -> Iterator[fx.Node]:
    """The sizes, values, settings and inputs that a number is computed from."""
    for given in node.all_input_nodes:
        if given.op == "placeholder" or given.target in ("size", "item", *_SETTINGS):
            yield given
        else:
            yield from _sizes(given)


def _varies(source: ChannelGraph, size: fx.Node) -> bool:
    """Whether a size may differ for other inputs; it cannot if the dim comes from parameters alone."""
    if size.op == "placeholder" or size.target in ("item", *_SETTINGS):  # also an item of a random tensor
        return True
    tensor, dim = size.args
    return not _is_made_of_weights(source, source.axes[tensor][dim])  # type: ignore[index]


def _is_made_of_weights(source: ChannelGraph, axis: Axis) -> bool:
    # The axis is not resolved: a weight's axis that the solver bound to a fixed size still has the weight's size.
    if isinstance(axis, Channels):
        return axis.origin.tensor in source.shapes
    return not isinstance(axis, Fixed) and all(_is_made_of_weights(source, part) for part in inside(axis))


def _is_batch(source: ChannelGraph, graph: fx.Graph, size: fx.Node) -> bool:
    """Whether a number is the size of the first input's first dim, which all ops in between passed on."""
    if size.target != "size" or size.args[1] != 0:
        return False
    first = next(n for n in graph.nodes if n.op == "placeholder")
    axes = source.axes[size.args[0]]  # type: ignore[index]
    given = source.axes[first]
    return isinstance(given, tuple) and len(given) > 0 and axes[0] is given[0]


def number_of_forward(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """The index of the forward that takes inputs of these sizes and dtypes; it is determined once for each."""
    find = remembered_number
    if "torch._dynamo" in sys.modules:  # torch.compile must not trace the search
        find = torch.compiler.disable(find)  # type: ignore[no-untyped-call]
    return find(module, forwards, args, kwargs)


number_of_forward._torchdynamo_disable = True  # type: ignore[attr-defined]


def remembered_number(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """As :func:`number_of_forward`. The module keeps the answer by input sizes, unless values decide it."""
    found: dict[Any, list[int]] = vars(module).setdefault("_chosen", {})
    sizes = (module.training, sizes_of(args), sizes_of(kwargs))
    # Torch modes count or record what this thread runs, but the search is not part of the network.
    with ThreadPoolExecutor(1) as other_thread:
        if sizes not in found:
            found[sizes] = other_thread.submit(fitting_forwards, module, forwards, args, kwargs).result()
        if len(found[sizes]) < 2:
            return (found[sizes] or [0])[0]
        return other_thread.submit(first_accepted, module, forwards, found[sizes], args, kwargs).result()


def sizes_of(value: Any) -> Any:
    """Nested arguments with each tensor replaced by its shape and dtype; plain numbers and strings stay."""
    if isinstance(value, torch.Tensor):
        return (*value.shape, value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(sizes_of(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, sizes_of(item)) for key, item in value.items())
    return value if isinstance(value, (bool, int, float, str)) else None


def mapped(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Nested arguments with ``change`` applied to all tensors."""
    if isinstance(value, torch.Tensor):
        return change(value.detach())
    if isinstance(value, list):
        return [mapped(change, item) for item in value]
    if type(value) is tuple:
        return tuple(mapped(change, item) for item in value)
    if isinstance(value, dict):
        return {key: mapped(change, item) for key, item in value.items()}
    return value


def copied_parts(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copies of a module's parts, without hooks, as this is not a real call; ``memo``: new tensors by id of the old."""
    parts = nn.Module.__new__(type(module))  # of the same class: generated code may reach parts through the class
    nn.Module.__init__(parts)
    for held in ("_modules", "_parameters", "_buffers"):
        vars(parts)[held] = copy.deepcopy(getattr(module, held), memo)
    for part in parts.modules():
        vars(part)["_forward_hooks"], vars(part)["_forward_pre_hooks"] = {}, {}
    return parts


def fitting_forwards(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> list[int]:
    """The first of ``forwards`` that runs on the meta device; if none does, those whose outcome depends on values."""
    tensors = (*module.parameters(), *module.buffers())
    parts = copied_parts(module, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})
    unsure = []
    for number, forward in enumerate(forwards):
        try:
            inspect.signature(forward).bind(parts, *args, **kwargs)
        except TypeError:  # a graph for other arguments
            continue
        given, named = mapped(lambda tensor: tensor.to("meta"), [args, kwargs])
        try:
            # Ops that are not on the meta device still draw random numbers.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                forward(parts, *given, **named)
        except AssertionError:
            continue
        except Exception:  # it needs values: the real run decides
            unsure.append(number)
            continue
        return [number]
    return unsure


def first_accepted(
    module: nn.Module, forwards: Sequence[Callable[..., Any]], numbers: list[int], args: Any, kwargs: Any
) -> int:
    """The first of the numbered ``forwards`` whose checks accept the values, run on copies of what a call may write."""
    for number in numbers[:-1]:
        parts = copied_parts(module, {id(parameter): parameter.detach() for parameter in module.parameters()})
        given, named = mapped(torch.clone, [args, kwargs])
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                forwards[number](parts, *given, **named)
        except AssertionError:
            continue
        except Exception:  # the real call will raise it again
            return number
        return number
    return numbers[-1]


def source() -> str:
    """The source of :func:`number_of_forward` and of the functions that it calls."""
    functions: tuple[Callable[..., Any], ...] = (number_of_forward, remembered_number, sizes_of, mapped)
    functions += (copied_parts, fitting_forwards, first_accepted)
    parts = [inspect.getsource(function) for function in functions]
    parts[0] += "\n\nnumber_of_forward._torchdynamo_disable = True\n"
    return "\n\n".join(parts)
