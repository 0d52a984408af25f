"""Ops without a rule: trials on random values find the dims along which they pass channels through.

A dim passes channels through if selecting channels before the call and after it gives equal results and gradients: then
each channel depends on itself alone. A dim is normed over if the same holds for permuting the channels and for giving
each twice, but not for selecting: then each depends on itself and on averages, as in a norm. A dim that two operands
share is summed over if zeros for channels of either are equivalent to their removal. Everything else is pinned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.axes.expressions import Axis, Fixed
from fxprune.errors import AnalysisError
from fxprune.rules.call import Call, concrete, fixed_axes, is_tensor
from fxprune.rules.registry import Rule

# The channels' dim in each operand, and in each result; None if a tensor does not have the channels.
Places = tuple[tuple[int | None, ...], tuple[int | None, ...]]

_WHY = "it has no rule, and on random values picking channels before it and after it is not the same"
_KNOWN = frozenset({"aten", "prims", "prim", "torchvision"})
# Random values, of both signs and of one. In all but the first, channels differ in scale by decades, so that a branch
# that depends on all channels together differs for the selected ones.
_VALUES: tuple[Callable[[Tensor], Tensor], ...] = (lambda t: t, lambda t: t, lambda t: t, torch.abs, lambda t: -t.abs())
# Sums over channels: a custom norm would divide them by their number, which no proof can tell from a constant.
_SUMS = ("sum", "prod", "norm", "mm", "dot", "matmul", "einsum", "conv")
_MOST_ELEMENTS, _MOST_PLACES, _SEED = 1 << 16, 64, 20_773


def is_probed(target: Any) -> bool:
    """Whether a call's target is not an op of torch, so that its name has no known meaning."""
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        space = getattr(target, "namespace", "") or str(getattr(target, "_qualified_op_name", "")).split("::")[0]
        return space not in _KNOWN
    cls = getattr(target, "cls", None)
    return isinstance(cls, type) and issubclass(cls, torch.autograd.Function)


def _probed(call: Call) -> None:
    trial = OpTrial(call.node)
    results: list[list[Axis]] = [list(axes) for axes in fixed_axes(trial.outputs, _WHY)]
    done: set[tuple[int, int]] = set()
    pinned: list[Axis] = []
    for number, node in enumerate(trial.nodes):
        for dim, axis in enumerate(map(call.solver.resolve, call.axes_of(node))):
            if (number, dim) in done or isinstance(axis, Fixed) or axis.size == 1:
                continue
            places = trial.passes(number, dim)
            if places is None:
                pinned.append(axis)
            else:
                done.update(_pass(call, trial, axis, places, results))
    if pinned and not done:
        raise AnalysisError(f"{_WHY}: write a rule for it")
    call.pin_all(pinned, _WHY)
    shaped = iter(map(tuple, results))
    call.result = pytree.tree_map_only(torch.Tensor, lambda _: next(shaped), call.value)
    if done:
        call.notes["probed"] = f"{call.cause.op} has no rule; by trial on random values it passes channels through"


def _pass(
    call: Call, trial: OpTrial, axis: Axis, places: Places, results: list[list[Axis]]
) -> Iterator[tuple[int, int]]:
    """Tie the dims at these places of operands and results; yield (operand, dim) for the operands."""
    for number, dim in enumerate(places[0]):
        if dim is not None:
            call.unify(axis, call.axes_of(trial.nodes[number])[dim])
            yield number, dim
    for number, dim in enumerate(places[1]):
        if dim is not None:
            results[number][dim] = axis
    if trial.crosses(places):
        call.crosses((axis,))


PROBED = Rule("", _probed)


@dataclass
class OpTrial:
    """Runs of one node's op on random operands, of its own shapes and of others."""

    node: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        leaves, self._structure = pytree.tree_flatten((tuple(self.node.args), dict(self.node.kwargs)))
        self.nodes = [leaf for leaf in leaves if is_tensor(leaf)]
        if any(isinstance(leaf, fx.Node) and not is_tensor(leaf) for leaf in leaves):
            raise AnalysisError("it takes a number that is computed in the forward")
        kinds = {node.meta["val"].dtype for node in self.nodes}
        if any(not kind.is_floating_point and kind is not torch.bool for kind in kinds):
            raise AnalysisError("it has no rule, and takes integers, which a kernel may trust to be in range")
        self._literals = [None if is_tensor(leaf) else concrete(leaf) for leaf in leaves]
        self._slots = [number for number, leaf in enumerate(leaves) if is_tensor(leaf)]
        self.outputs = [v for v in pytree.tree_leaves(self.node.meta["val"]) if isinstance(v, Tensor)]
        self._normed: set[Places] = set()

    def crosses(self, places: Places) -> bool:
        """Whether the channels at these places depend on averages over all of them."""
        return places in self._normed

    def passes(self, number: int, dim: int) -> Places | None:
        """The places of the channels of an operand's dim in all operands and results, or None if they do not pass."""
        shapes = [tuple(node.meta["val"].shape) for node in self.nodes]
        for places in itertools.islice(self._candidates(number, dim, shapes), _MOST_PLACES):
            sizes = list(self._sizes(places, shapes))
            if not any(d is not None for d in places[1]):
                if sum(d is not None for d in places[0]) > 1 and all(self._holds(places, s, _sums) for s in sizes):
                    return places
            elif all(self._holds(places, s, _picks) for s in sizes):
                return places
            elif not any(self._holds(places, s, _maps) for s in sizes) and all(
                self._holds(places, s, self._averages) for s in sizes
            ):
                self._normed.add(places)
                return places
        return None

    def _candidates(self, number: int, dim: int, shapes: Sequence[tuple[int, ...]]) -> Iterator[Places]:
        size, rank = shapes[number][dim], len(shapes[number])

        def options(shape: Sequence[int]) -> list[int | None]:
            dims = [d for d, n in enumerate(shape) if n == size]
            same = [d for d in dims if len(shape) == rank and d == dim]
            return [*same, *(d for d in dims if d not in same), None]

        given = [[dim] if k == number else options(shape) for k, shape in enumerate(shapes)]
        made = [options(value.shape) for value in self.outputs]
        for chosen in itertools.product(*made, *given):
            yield chosen[len(made) :], chosen[: len(made)]

    def _sizes(self, places: Places, shapes: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Shapes of the operands with the call's own number of channels, and with one more; other dims are small."""
        numbers = sorted({n for shape in shapes for n in shape if n > 1})
        size = next(shape[d] for shape, d in zip(shapes, places[0], strict=True) if d is not None)
        elements = max((torch.Size(shape).numel() for shape in shapes), default=0)
        small = {n: n if n == size or elements <= _MOST_ELEMENTS else min(n, 8 + k) for k, n in enumerate(numbers)}
        for more in (0, 1):
            yield [tuple(small[n] + more if n > 1 else n for n in shape) for shape in shapes]

    def _holds(self, places: Places, shapes: Sequence[tuple[int, ...]], test: Callable[..., bool]) -> bool:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(_SEED)
            try:
                runs = (_Run(self, places, self._values(places, shapes, n)) for n in range(len(_VALUES)))
                return all(map(test, runs))
            except Exception:  # the op is the user's own code and may raise anything
                return False

    @cached_property
    def learns(self) -> bool:
        """Whether the op has a backward: some that libraries register have none, and raise if it is called."""
        values = [torch.zeros(v.shape, dtype=v.dtype, requires_grad=v.is_floating_point()) for v in self._metas()]
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            try:
                made = [value.sum() for value in self.call(values) if value.requires_grad]
                torch.autograd.backward(made)
            except (NotImplementedError, RuntimeError):
                return False
        return True

    def _metas(self) -> list[Tensor]:
        return [node.meta["val"] for node in self.nodes]

    def _values(self, places: Places, shapes: Sequence[tuple[int, ...]], number: int) -> list[Tensor]:
        values = []
        for node, shape, dim in zip(self.nodes, shapes, places[0], strict=True):
            kind = node.meta["val"].dtype
            value = torch.randn(shape, dtype=torch.float64) if kind.is_floating_point else torch.randint(2, shape)
            if number and dim is not None and kind.is_floating_point:
                value *= _along(10 ** (4 * torch.rand(shape[dim], dtype=torch.float64) - 2), value, dim)
            values.append(_VALUES[number](value) if kind.is_floating_point else value.to(kind))
        return values

    def call(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The op's results on other operands."""
        leaves = list(self._literals)
        for slot, value in zip(self._slots, values, strict=True):
            leaves[slot] = value
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        target: Any = self.node.target
        return [v for v in pytree.tree_leaves(target(*args, **kwargs)) if isinstance(v, Tensor)]

    def _averages(self, run: _Run) -> bool:
        with _Names() as names:
            self.call(run.values)
        if any(part in name for name in names.met for part in _SUMS):
            return False
        twice = torch.arange(run.size).repeat_interleave(2)
        return run.repeats() and run.agrees(torch.randperm(run.size)) and run.agrees(twice, copies=2)


def _chosen(run: _Run) -> list[Tensor]:
    """Random indices of half of the channels, of a third of them, and of one."""
    return [torch.randperm(run.size)[: max(1, run.size // parts)].sort().values for parts in (2, 3, run.size)]


def _picks(run: _Run) -> bool:
    return run.repeats() and all(run.agrees(index, alone=True) for index in _chosen(run))


def _maps(run: _Run) -> bool:
    """Whether the results alone pass channels through: then averages in the backward are not those of a norm."""
    index = _chosen(run)[0]
    values = [_picked(v, d, index) for v, d in zip(run.values, run.places[0], strict=True)]
    expected = [_picked(v, d, index) for v, d in zip(run.results, run.places[1], strict=True)]
    return _close(run.trial.call(values), expected)


def _sums(run: _Run) -> bool:
    return run.repeats() and all(run.ignores_zeros(index) for index in _chosen(run))


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of the ops that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.met: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met.add(func._schema.name.rpartition("::")[2])
        return func(*args, **(kwargs or {}))


@dataclass
class _Run:
    """An op on given values, and on selected channels of them."""

    trial: OpTrial
    places: Places
    values: list[Tensor]

    def __post_init__(self) -> None:
        self.size = next(v.shape[d] for v, d in zip(self.values, self.places[0], strict=True) if d is not None)

    @cached_property
    def results(self) -> list[Tensor]:
        """The results with all channels."""
        return [v.detach() for v in self.trial.call([v.clone() for v in self.values])]

    @cached_property
    def weights(self) -> list[Tensor]:
        """Random gradients of the results."""
        return [torch.randn(v.shape, dtype=torch.float64).to(v.dtype) for v in self.results]

    def repeats(self) -> bool:
        """Whether the op returns the same results twice, and does not change its operands."""
        given = [v.clone() for v in self.values]
        again = self.trial.call(given)
        kept = all(map(torch.equal, given, self.values))
        return kept and len(again) == len(self.results) and all(map(torch.equal, again, self.results))

    def agrees(self, index: Tensor, alone: bool = False, copies: int = 1) -> bool:
        """Whether selecting channels by ``index`` before the call and after it is equivalent.

        ``alone``: the full call gets gradients of the selected channels only. ``copies``: how often each is selected.
        """
        given, made = self.places
        mask = torch.zeros(self.size, dtype=torch.float64).index_fill_(0, index, 1.0)
        weights = [w * _along(mask, w, d).to(w.dtype) if alone and d is not None else w for w, d in self._weighted()]
        whole = self._learn(self.values, weights)
        values = [_picked(v, d, index) for v, d in zip(self.values, given, strict=True)]
        part = self._learn(values, [_picked(w, d, index) for w, d in self._weighted()])
        expected = [_picked(v, d, index) for v, d in zip(whole[0], made, strict=True)]
        shared = [1 if d is not None else copies for d in given]
        grads = [_picked(g, d, index) * n for g, d, n in zip(whole[1], given, shared, strict=True)]
        if alone and any(
            bool((g * _along(1 - mask, g, d)).any()) for g, d in zip(whole[1], given, strict=True) if d is not None
        ):
            return False
        return _close(part[0], expected) and _close(part[1], grads)

    def ignores_zeros(self, index: Tensor) -> bool:
        """Whether zeros in any one operand, for channels not in ``index``, are equivalent to their removal."""
        mask = torch.zeros(self.size, dtype=torch.float64).index_fill_(0, index, 1.0)
        dims = self.places[0]
        zeroed = [v if d is None else v * _along(mask, v, d) for v, d in zip(self.values, dims, strict=True)]
        part = self._learn([_picked(v, d, index) for v, d in zip(self.values, dims, strict=True)], self.weights)
        whole = self._learn(zeroed, self.weights)
        for number, dim in enumerate(dims):
            mixed = [z if k == number else v for k, (z, v) in enumerate(zip(zeroed, self.values, strict=True))]
            if dim is not None and not _close(part[0], self.trial.call(mixed)):
                return False
        return _close(part[1], [_picked(g, d, index) for g, d in zip(whole[1], dims, strict=True)])

    def _weighted(self) -> list[tuple[Tensor, int | None]]:
        return list(zip(self.weights, self.places[1], strict=True))

    def _learn(self, values: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The results, and the gradients of the operands; zeros for operands without a gradient."""
        leaves = [v.detach().clone().requires_grad_(v.is_floating_point()) for v in values]
        results = self.trial.call(leaves)
        pairs = [(r, w) for r, w in zip(results, weights, strict=True) if r.requires_grad and self.trial.learns]
        learning = [v for v in leaves if v.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(learning)
        if pairs and learning:
            made, given = zip(*pairs, strict=True)
            found = torch.autograd.grad(made, learning, given, allow_unused=True)
        by_leaf = {id(v): g for v, g in zip(learning, found, strict=True)}
        grads = [by_leaf.get(id(v)) for v in leaves]
        filled = [torch.zeros(v.shape) if g is None else g for v, g in zip(leaves, grads, strict=True)]
        return [r.detach() for r in results], filled


def _picked(tensor: Tensor, dim: int | None, index: Tensor) -> Tensor:
    return tensor if dim is None else tensor.index_select(dim, index)


def _along(vector: Tensor, like: Tensor, dim: int) -> Tensor:
    return vector.view([-1 if d == dim else 1 for d in range(like.dim())])


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, in the precision of the less precise one, and finite."""
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return False
        digits = [torch.finfo(t.dtype).eps for t in (a, b) if t.is_floating_point()]
        bound = max(digits, default=0.0) ** 0.7 * max(1.0, float(b.abs().max()) if b.numel() else 1.0)
        if not bool(((a - b).abs() <= bound).all() if digits else (a == b).all()):
            return False
    return True
