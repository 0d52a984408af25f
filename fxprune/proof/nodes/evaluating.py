"""Evaluates one node in both networks, on values for which the claims of its operands hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.decisions import refuses_values
from fxprune.proof.locating import reads_about
from fxprune.proof.nodes.claims import Claim
from fxprune.proof.nodes.drawing import Setting, held
from fxprune.proof.nodes.pairs import (
    Pair,
    UnjudgedError,
    call,
    fault,
    in_dtype,
    may_write,
    on_tensors,
    on_values,
    tensors_among,
)
from fxprune.proof.nodes.structure import Step
from fxprune.proof.running import modes

TOLERANCE = 1e-11


@dataclass(frozen=True, eq=False)
class Way:
    """One way to evaluate a node: the type, the tolerance, and whether over the kept entries alone."""

    dtype: torch.dtype
    tolerance: float
    over_kept: bool = False


WAYS = (Way(torch.float32, 0.0), Way(torch.float64, TOLERANCE), Way(torch.float64, TOLERANCE, over_kept=True))


@dataclass(eq=False)
class Result:
    """A node's values in one way of evaluation, and its operands' values by node, as the call left them."""

    full: Any
    narrow: Any
    used: dict[fx.Node, tuple[Any, Any]]
    modules: tuple[nn.Module, nn.Module] | None
    random: bool


class Evaluation:
    """Evaluates nodes of a pair of graphs; ``claims`` and ``owners`` grow during a walk."""

    def __init__(
        self, pair: Pair, setting: Setting, claims: Mapping[fx.Node, Claim], owners: Mapping[fx.Node, fx.Node]
    ) -> None:
        """``owners``: by node of the rewritten graph, the captured node that it stands for."""
        self._pair, self._setting = pair, setting
        self._claims, self._owners = claims, owners

    def run(self, step: Step, way: Way, training: bool | None = None) -> Result:
        """Evaluate the node in both networks; ``training``: the mode of modules. Raises UnjudgedError: a call fails."""
        modules = self._modules(step, way, training)
        used: dict[fx.Node, tuple[Any, Any]] = {}
        before = self._random_state()
        full, random = self.called(step.full, modules and modules[0], self._full_value(step, modules, way, used), way)
        if random:  # the same for the other network
            self._set_random_state(before)
        local: dict[fx.Node, Any] = {}

        def narrow_value(given: fx.Node) -> Any:
            if given in local:
                return local[given]
            owner = self._owners.get(given)
            if owner is None or owner not in self._claims:
                raise UnjudgedError(f"{given.name} is read, but its value is unknown")
            if owner not in used:
                self._full_value(step, modules, way, used)(owner)
            return used[owner][1]

        for written in step.written:
            if written.op == "get_attr":
                local[written] = self._pair.named(written)[1]
            else:
                module = modules[1] if modules and written is step.counterpart else None
                local[written], _ = self.called(written, module, narrow_value, Way(way.dtype, way.tolerance))
        narrow = narrow_value(step.image) if isinstance(step.image, fx.Node) else step.image
        return Result(full, narrow, used, modules, random)

    def run_full(self, step: Step, way: Way) -> Result:
        """Evaluate the node in the full network alone."""
        modules = self._modules(step, way, None)
        used: dict[fx.Node, tuple[Any, Any]] = {}
        full, random = self.called(step.full, modules and modules[0], self._full_value(step, modules, way, used), way)
        return Result(full, full, used, modules, random)

    def replayed(self, views: Sequence[Step], write: Step, base: fx.Node, way: Way) -> dict[fx.Node, tuple[Any, Any]]:
        """After a write, the values of ``base`` and of the views up to the written one, in both networks, by node."""
        full, narrow = _cloned(tuple(in_dtype(value, way.dtype) for value in self._claims[base].values()))
        values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = {base: full}, {base: narrow}
        local: dict[fx.Node, Any] = {}

        def value_of(side: int, given: fx.Node) -> Any:
            if side and given in local:
                return local[given]
            node = self._owners[given] if side else given
            if node not in values[side]:
                values[side][node] = in_dtype(self._claims[node].values()[side], way.dtype)
            return values[side][node]

        for step in (*views, write):
            values[0][step.full], _ = self.called(step.full, None, partial(value_of, 0), way)
            for written in step.written:
                if written.op == "get_attr":
                    local[written] = self._pair.named(written)[1]
                else:
                    local[written], _ = self.called(written, None, partial(value_of, 1), way)
            values[1][step.full] = local[step.image]
        return {node: (values[0][node], values[1][node]) for node in values[0].keys() & values[1].keys()}

    def _full_value(
        self, step: Step, modules: Any, way: Way, used: dict[fx.Node, tuple[Any, Any]]
    ) -> Callable[[fx.Node], Any]:
        writes, about = may_write(step.full, modules and modules[0]), reads_about(step.full)

        def value_of(given: fx.Node) -> Any:
            if given not in used:
                claim = self._claims[given]
                full, narrow = claim.sized() if about else claim.values()
                full = claim.over_kept() if way.over_kept and not about else full
                pair = (in_dtype(full, way.dtype), in_dtype(narrow, way.dtype))
                used[given] = _cloned(pair) if writes else pair
            return used[given][0]

        return value_of

    def called(
        self, node: fx.Node, module: nn.Module | None, value_of: Callable[[fx.Node], Any], way: Way
    ) -> tuple[Any, bool]:
        """The result of one call, and whether it drew random numbers."""
        args, kwargs = on_values(node, value_of)
        versions = [(tensor, tensor._version) for tensor in tensors_among((args, kwargs))]
        state = self._random_state()
        try:
            if way.dtype == torch.float32:
                result = call(node, args, kwargs, module)
            else:
                with modes(way.dtype, carry_nan=way.over_kept):
                    result = call(node, args, kwargs, module)
        except AssertionError as error:
            if not refuses_values(error):
                raise UnjudgedError(f"{node.name} refuses these sizes: {error}") from error
            result = False  # random values may take another branch: then both networks refuse them
        except Exception as error:
            raise UnjudgedError(f"{node.name}: {type(error).__name__}: {error}") from error
        if not may_write(node, module) and any(tensor._version != version for tensor, version in versions):
            raise UnjudgedError(f"{node.name} writes in place without declaring it")
        return result, not torch.equal(state, self._random_state())

    def _random_state(self) -> Tensor:
        device = self._setting.patterns.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        device = self._setting.patterns.device
        return torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)

    def modules(self, step: Step) -> tuple[nn.Module, nn.Module] | None:
        """The modules that a node calls in both networks."""
        if step.full.op != "call_module" or step.counterpart is None:
            return None
        return self._setting.attribute(str(step.full.target)), self._pair.named(step.counterpart)[1]

    def _modules(self, step: Step, way: Way, training: bool | None) -> tuple[nn.Module, nn.Module] | None:
        """The same modules with values of this way of evaluation."""
        found = self.modules(step)
        if found is None:
            return None
        full, narrow = found
        training = self._pair.training if training is None else training
        tensors: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for name, tensor in (*full._parameters.items(), *full._buffers.items()):
            other = narrow._parameters.get(name, narrow._buffers.get(name))
            if tensor is None or other is None:
                tensors[0][name], tensors[1][name] = None, None
                if tensor is not other:
                    raise fault(self._pair, step.full, f"{name} exists in one network only")
                continue
            values = self._tensors(f"{step.full.target}.{name}", tensor, other, way)
            if isinstance(full, nn.RNNBase) and name.startswith(("weight_hh", "weight_hr")):
                # A state that grows from step to step would magnify rounding; a power of two rounds nothing.
                values = values[0] * (share := 0.5 ** math.ceil(math.log2(4 * tensor.shape[1]))), values[1] * share
            tensors[0][name], tensors[1][name] = values
        return on_tensors(full, tensors[0], training), on_tensors(narrow, tensors[1], training)

    def _tensors(self, name: str, full: Tensor, narrow: Tensor, way: Way) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = in_dtype(held(self._setting, name, full, narrow), way.dtype)
        if not way.over_kept:
            return pair
        return Claim(pair, self._setting.keep.get(name, ())).over_kept(), pair[1]


def _cloned(pair: tuple[Any, Any]) -> Any:
    return fx.node.map_aggregate(pair, lambda v: v.clone() if isinstance(v, Tensor) else v)
