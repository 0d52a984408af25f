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

# The dtype of a tensor, its layout, and what is around a call.
_SETTINGS = (getattr, "is_contiguous", torch.is_autocast_enabled)


def idle_nodes(source: ChannelGraph, graph: fx.Graph) -> set[fx.Node]:
    """The checks in a captured graph that no input can fail, and the numbers that nothing else reads."""
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
    """The sizes, values, settings, and numbers among the inputs, that a number is computed from."""
    for given in node.all_input_nodes:
        if given.op == "placeholder" or given.target in ("size", "item", *_SETTINGS):
            yield given
        else:
            yield from _sizes(given)


def _varies(source: ChannelGraph, size: fx.Node) -> bool:
    """Whether a size may be another one with another input: unless parameters alone make the dim."""
    if size.op == "placeholder" or size.target in ("item", *_SETTINGS):  # random numbers have values, too
        return True
    tensor, dim = size.args
    return not _is_made_of_weights(source, source.axes[tensor][dim])  # type: ignore[index]


def _is_made_of_weights(source: ChannelGraph, axis: Axis) -> bool:
    # The axis as its op gave it: a weight's axis that the solver found to be fixed still has the weight's size.
    if isinstance(axis, Channels):
        return axis.origin.tensor in source.shapes
    return not isinstance(axis, Fixed) and all(_is_made_of_weights(source, part) for part in inside(axis))


def _is_batch(source: ChannelGraph, graph: fx.Graph, size: fx.Node) -> bool:
    """Whether a number is the size of an input's first dim as all ops since have handed it on."""
    if size.target != "size" or size.args[1] != 0:
        return False
    first = next(n for n in graph.nodes if n.op == "placeholder")
    axes = source.axes[size.args[0]]  # type: ignore[index]
    given = source.axes[first]
    return isinstance(given, tuple) and len(given) > 0 and axes[0] is given[0]


def number_of_forward(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """Which of ``forwards`` takes inputs of these sizes; for new ones it is found out once."""
    find = number_once_found
    if "torch._dynamo" in sys.modules:  # torch.compile need not see how it is found out
        find = torch.compiler.disable(find)  # type: ignore[no-untyped-call]
    return find(module, forwards, args, kwargs)


number_of_forward._torchdynamo_disable = True  # type: ignore[attr-defined]


def number_once_found(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> int:
    """The same, kept by the sizes of the inputs in the module, unless their values decide."""
    found: dict[Any, list[int]] = vars(module).setdefault("_chosen", {})
    sizes = (module.training, sizes_of(args), sizes_of(kwargs))
    # Modes of torch count and record what this thread runs, and this is no part of the network.
    with ThreadPoolExecutor(1) as other_thread:
        if sizes not in found:
            found[sizes] = other_thread.submit(those_that_fit, module, forwards, args, kwargs).result()
        if len(found[sizes]) < 2:
            return (found[sizes] or [0])[0]
        return other_thread.submit(first_that_runs, module, forwards, found[sizes], args, kwargs).result()


def sizes_of(value: Any) -> Any:
    """The shapes of all tensors in nested arguments, and other values as they are."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(sizes_of(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, sizes_of(item)) for key, item in value.items())
    return value if isinstance(value, (bool, int, float, str)) else None


def mapped(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Nested arguments with all tensors changed."""
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
    """Copies of a module's parts without hooks, which are for real calls; ``memo``: what stands for a tensor, by id."""
    parts = nn.Module.__new__(type(module))  # of its class, as generated code may reach parts through the class
    nn.Module.__init__(parts)
    for held in ("_modules", "_parameters", "_buffers"):
        vars(parts)[held] = copy.deepcopy(getattr(module, held), memo)
    for part in parts.modules():
        vars(part)["_forward_hooks"], vars(part)["_forward_pre_hooks"] = {}, {}
    return parts


def those_that_fit(module: nn.Module, forwards: Sequence[Callable[..., Any]], args: Any, kwargs: Any) -> list[int]:
    """The first of ``forwards`` that takes the sizes on the meta device; where none does, those that values may let."""
    tensors = (*module.parameters(), *module.buffers())
    parts = copied_parts(module, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})
    unsure = []
    for number, forward in enumerate(forwards):
        try:
            inspect.signature(forward).bind(parts, *args, **kwargs)
        except TypeError:  # it is a graph for other arguments
            continue
        given, named = mapped(lambda tensor: tensor.to("meta"), [args, kwargs])
        try:
            # Random numbers that are not on the meta device are drawn all the same.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                forward(parts, *given, **named)
        except AssertionError:
            continue
        except Exception:  # what cannot be run without values is left to the real run
            unsure.append(number)
            continue
        return [number]
    return unsure


def first_that_runs(
    module: nn.Module, forwards: Sequence[Callable[..., Any]], numbers: list[int], args: Any, kwargs: Any
) -> int:
    """The first of the numbered ``forwards`` that takes the values, tried on copies of what a call may write."""
    for number in numbers[:-1]:
        parts = copied_parts(module, {id(parameter): parameter.detach() for parameter in module.parameters()})
        given, named = mapped(torch.clone, [args, kwargs])
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                forwards[number](parts, *given, **named)
        except AssertionError:
            continue
        except Exception:  # the call itself will raise it
            return number
        return number
    return numbers[-1]


def source() -> str:
    """The source of :func:`number_of_forward` and of what it calls."""
    functions: tuple[Callable[..., Any], ...] = (number_of_forward, number_once_found, sizes_of, mapped)
    functions += (copied_parts, those_that_fit, first_that_runs)
    parts = [inspect.getsource(function) for function in functions]
    parts[0] += "\n\nnumber_of_forward._torchdynamo_disable = True\n"
    return "\n\n".join(parts)
