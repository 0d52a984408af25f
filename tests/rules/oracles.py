"""Random prunes, and what the pruned network has to compute, worked out without the pass's own proof."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.solving import ChannelGraph
from fxprune.errors import PlanError
from fxprune.planning import Plan

TOLERANCE = 1e-9
_DRAWS = 200


def random_plan(graph: ChannelGraph, seed: int) -> Plan:
    """Remove a random non-empty part of every group; drawn again where that would leave a tensor's dim empty."""
    generator = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        masks = {group: _random_mask(generator, group.size) for group in graph.groups}
        try:
            return Plan.from_masks(graph, masks, {})
        except PlanError:
            continue
    raise AssertionError("no random prune leaves every dim with an element")


def _random_mask(generator: np.random.Generator, size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = generator.random(size) < generator.uniform(0.3, 0.9)
    chosen = generator.permutation(size)
    mask[chosen[0]] = True
    if size > 1:
        mask[chosen[1]] = False
    return mask


class Kept:
    """Kept indices by tensor name and dim; every index where nothing goes.

    ``first_name`` gives the name under which a tied tensor is planned.
    """

    def __init__(self, plan: Plan, first_name: Callable[[str], str] = str) -> None:
        self._plan, self._first_name = plan, first_name

    def __call__(self, name: str, dim: int = 0) -> Tensor:
        name = self._first_name(name)
        index = self._plan.keep[name][dim]
        return torch.arange(self._plan.shapes[name][dim]) if index is None else index

    def shrinks(self, name: str, dim: int = 0) -> bool:
        """Whether any index of the dim goes."""
        return self._plan.keep[self._first_name(name)][dim] is not None

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """The kept entries of a tensor under its name."""
        for dim in range(tensor.dim()):
            tensor = tensor.index_select(dim, self(name, dim))
        return tensor


def masked(net: nn.Module, plan: Plan) -> nn.Module:
    """A copy with every removed entry of every float parameter and buffer zero; running variances are left alone."""
    twin = copy.deepcopy(net)
    tensors = {
        **dict(twin.named_parameters(remove_duplicate=False)),
        **dict(twin.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or name.endswith("running_var"):
                continue
            for dim, kept in enumerate(plan.keep.get(name, ())):
                if kept is not None:
                    gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                    gone[kept] = False
                    tensor.index_fill_(dim, gone.nonzero().flatten(), 0.0)
    return twin


def difference(expected: Any, actual: Any) -> float:
    """The largest difference of two outputs relative to the largest expected value of each tensor."""
    left, right = _tensors(expected), _tensors(actual)
    assert left, "the network returns no tensor"
    assert len(left) == len(right)
    return max(_relative(a, b) for a, b in zip(left, right, strict=True))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _relative(expected: Tensor, actual: Tensor) -> float:
    assert expected.shape == actual.shape, f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    if not expected.is_floating_point():
        return float(not torch.equal(expected, actual))
    assert bool(torch.isfinite(expected).all()), "the oracle itself is not finite"
    scale = max(float(expected.abs().max()), 1e-6)
    return float((expected - actual).abs().max()) / scale


def state_of(net: nn.Module) -> Mapping[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.clone() for name, value in net.state_dict().items()}
