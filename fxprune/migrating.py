"""An optimiser's state carried over to the kept channels, so that training goes on where it was."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.errors import PlanError
from fxprune.model_paths import attribute
from fxprune.planning import Plan

__all__ = ["migrate"]

Kind = TypeVar("Kind", bound=Optimizer)


def migrate(optimizer: Kind, plan: Plan, model: nn.Module, pruned: nn.Module) -> Kind:
    """An optimiser of the same class and settings for a pruned network, with momentum and the like of what was kept.

    State of a parameter's shape (momentum, both moments of Adam) is cut as the parameter was, dims of size 1 (the
    factors of Adafactor) and numbers (step counts) are copied. The next step is that of the original with everything
    removed set to zero. Gradients are not carried over. A learning rate schedule holds its optimiser: make it anew with
    ``last_epoch``, or set its ``optimizer``.

    Args:
        optimizer: of ``model``'s parameters; it is not changed. Parameters that are not the model's stay as they are.
        plan: what was cut, ``fxprune.report(pruned).plan``.
        model: the original.
        pruned: the network cut from it.

    Raises:
        PlanError: the plan is for another network, or a state of the optimiser cannot be cut by it.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    plan.check({**plan.shapes, **{name: tuple(parameter.shape) for parameter, name in names.items()}})
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    twin.param_groups = []
    for group in optimizer.param_groups:
        pairs = [(p, attribute(pruned, names[p]) if p in names else p) for p in group["params"]]
        twin.param_groups.append({**group, "params": [new for _, new in pairs]})
        for old, new in pairs:
            if old in optimizer.state:
                twin.state[new] = _cut(optimizer.state[old], old, names.get(old, ""), plan)
    return twin


def _cut(state: Mapping[str, Any], parameter: Tensor, name: str, plan: Plan) -> dict[str, Any]:
    keep = plan.keep[name] if name else (None,) * parameter.ndim
    return {key: _cut_value(value, key, parameter, keep, name) for key, value in state.items()}


def _cut_value(value: Any, key: str, parameter: Tensor, keep: tuple[Tensor | None, ...], name: str) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach().clone()
    if value.ndim == 0:
        return value
    if value.ndim != parameter.ndim or any(v not in (1, p) for v, p in zip(value.shape, parameter.shape, strict=True)):
        raise PlanError(
            f"the optimiser's {key!r} of {name} has shape {tuple(value.shape)}, which does not follow the parameter's "
            f"{tuple(parameter.shape)}: start a fresh optimiser for the pruned network"
        )
    for dim, index in enumerate(keep):
        if index is not None and value.shape[dim] == parameter.shape[dim]:
            value = value.index_select(dim, index.to(value.device))
    return value
