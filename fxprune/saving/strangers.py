"""Sizes at which a network goes another way than the graph in a file, and what the file makes of them.

A graph checks every decision that its forward took on sizes. Runtimes drop such checks, or keep some of them; so a
size may change only where the file refuses what the graph refuses.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.decisions import REFUSAL, is_check, refuses_sizes
from fxprune.capture.samples import Sample, resized
from fxprune.errors import ExportError
from fxprune.proof.comparing import Leaves, compare
from fxprune.rewriting import PrunedGraphModule
from fxprune.saving.comparing import Check, tensors_of
from fxprune.util.paths import copied_graph

# Sizes to try beside those that the numbers in checks lead to. No test of divisibility in use holds for all of them.
_FEW, _STRIDES = range(1, 10), (1, 2, 4, 8, 16, 32)
_MOST_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Stranger:
    """Inputs which a file that holds one graph may not answer otherwise than the network."""

    sample: Sample  # the inputs
    expected: Leaves | None  # what the network answers; None where it refuses these sizes
    reason: str  # why the graph in the file does not take them; empty where it does

    @property
    def shapes(self) -> str:
        """The shapes of the tensors."""
        return " and ".join(str(tuple(tensor.shape)) for tensor in self.sample.tensors)


def conditions(network: nn.Module) -> list[str]:
    """What the one graph of a network needs of the sizes of its inputs, in words."""
    graph = network.graphs["eval"] if isinstance(network, PrunedGraphModule) else fx.Graph()
    said = (str(node.args[1]) for node in graph.nodes if is_check(node))
    return list(dict.fromkeys(_words(text) for text in said if text.startswith(REFUSAL)))


def _words(refusal: str) -> str:
    """The condition alone."""
    return refusal.removeprefix(REFUSAL).removeprefix("inputs of other sizes: ")


def find_strangers(whole: nn.Module, network: nn.Module, checks: Sequence[Check]) -> list[Stranger]:
    """Inputs of other sizes, in what the checks leave free, that the graph of ``network`` does not take; a batch of 1.

    ``whole``: the network with the graphs for all sizes, which says what is right.
    """
    first, free = checks[0].probe.sample, _free_dims(checks)
    found = dict[tuple[str, str], Sample]()
    if isinstance(network, PrunedGraphModule) and conditions(network) and free:
        bare, numbers = _bare(network), _numbers(network.graphs["eval"])
        for dims in _together(first, free):
            for size in _sizes(first, dims, numbers):
                sample = _with_size(first, dims, size)
                if reason := _refusal(bare, sample.to_meta()):
                    found.setdefault((reason, "next"), sample)
                    known = found.setdefault((reason, "least"), sample)
                    found[reason, "least"] = min(known, sample, key=_elements)
    rows = {(number, dim) for number, dim in free if dim == 0}
    singles = [("", _with_size(first, rows, 1))] if rows else []
    if not isinstance(network, PrunedGraphModule):  # its own code decides, and nobody knows at which sizes
        singles += [("", _with_size(first, dims, _given(first, dims) + 1)) for dims in _together(first, free)]
    pairs = [*singles, *((reason, sample) for (reason, _), sample in found.items())]
    strangers = (_stranger(whole, sample, reason) for reason, sample in pairs)
    return [stranger for stranger in strangers if stranger is not None]


def refuse_strangers(run: Any, strangers: Sequence[Stranger], tolerance: float) -> list[str]:
    """What the file needs of sizes, where it refuses others. Raises ExportError: it answers otherwise instead."""
    needs = list[str]()
    for stranger in strangers:
        try:
            with torch.no_grad():
                answer = run(stranger.sample.map(torch.Tensor.clone))
        except Exception:  # runtimes raise many types
            needs += [stranger.reason] if stranger.reason else []
            continue
        if stranger.expected is None or not compare(stranger.expected, answer).error <= tolerance:
            why = stranger.reason or "the network goes another way there"
            raise ExportError(f"for {stranger.shapes} the file would be wrong: {why}")
    return list(dict.fromkeys(needs))


def _free_dims(checks: Sequence[Check]) -> set[tuple[int, int]]:
    """Numbers of tensors and their dims in which the checks differ."""
    first, *others = [[tensor.shape for tensor in check.probe.sample.tensors] for check in checks]
    return {
        (number, dim)
        for number, shape in enumerate(first)
        for dim, size in enumerate(shape)
        if any(other[number][dim] != size for other in others)
    }


def _together(sample: Sample, free: set[tuple[int, int]]) -> Iterator[set[tuple[int, int]]]:
    """Dims that may be of one size: all that have the same, and each alone."""
    sizes = {(number, dim): sample.tensors[number].shape[dim] for number, dim in free}
    groups = [
        {key for key in free if sizes[key] == size and (key[1] == 0) == batch}
        for size in sorted(set(sizes.values()))
        for batch in (True, False)
    ]
    groups += [{key} for key in sorted(free)]
    for number, group in enumerate(groups):
        if group and group not in groups[:number]:
            yield group


def _numbers(graph: fx.Graph) -> list[int]:
    """The whole numbers that checks compare sizes with, or divide them by."""
    pending, found, seen = [node for node in graph.nodes if is_check(node)], set[int](), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node not in seen:
            found |= {abs(value) for value in node.args if type(value) is int}
            pending += [given for given in node.all_input_nodes if _is_arithmetic(given)]
        seen.add(node)
    return sorted(found)


def _is_arithmetic(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") in (
        operator.__name__,
        "_operator",
        "math",
    )


def _sizes(sample: Sample, dims: set[tuple[int, int]], numbers: Sequence[int]) -> list[int]:
    """Sizes to try in the place of the sample's, next to what the numbers say of it and of what is strided."""
    given = _given(sample, dims)
    around = {value * stride + step for value in numbers for stride in _STRIDES for step in (-1, 0, 1, stride)}
    tried = {*_FEW, given + 1, given * 2, given * 2 + 1, *around} - {given}
    most = max(_MOST_ELEMENTS, 4 * _elements(sample)) * given // _elements(sample)
    return sorted((size for size in tried if 0 < size <= most), key=lambda size: abs(size - given))


def _given(sample: Sample, dims: set[tuple[int, int]]) -> int:
    number, dim = next(iter(dims))
    return sample.tensors[number].shape[dim]


def _elements(sample: Sample) -> int:
    return sum(tensor.numel() for tensor in sample.tensors)


def _with_size(sample: Sample, dims: set[tuple[int, int]], size: int) -> Sample:
    numbers = iter(range(len(sample.tensors)))

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        number = next(numbers)
        return resized(tensor, [size if (number, dim) in dims else old for dim, old in enumerate(tensor.shape)])

    return sample.map(changed)


def _bare(network: PrunedGraphModule) -> nn.Module:
    """The checks of the graph, and what they hang on, without values."""
    graph = copied_graph(network.graphs["eval"])
    graph.output_node().args = (None,)
    tensors = (*network.parameters(), *network.buffers())
    memo: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    bare = fx.GraphModule(copy.deepcopy(network, memo), graph)
    bare.graph.eliminate_dead_code()
    bare.recompile()
    return bare


def _refusal(network: nn.Module, sample: Sample) -> str:
    """Why the graph of a network does not take such sizes; empty where it does, or fails otherwise."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            sample.call(network)
    except Exception as error:  # the network's own code: anything may come out of it
        return _words(str(error)) if refuses_sizes(error) else ""
    return ""


def _stranger(whole: nn.Module, sample: Sample, reason: str) -> Stranger | None:
    try:
        with torch.no_grad():
            return Stranger(sample, tensors_of(sample.map(torch.Tensor.clone).call(whole)), reason)
    except Exception as error:  # the network's own code: anything may come out of it
        return Stranger(sample, None, reason or _words(str(error))) if refuses_sizes(error) else None
