"""What schedules share: checks of what they are given, ratios of steps, and one plan on all ranks of a run."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.analysis.groups import Group
from fxprune.calibration.statistic import is_distributed
from fxprune.capture.exported import unwrapped
from fxprune.cost.budgets import check_ratio
from fxprune.errors import OptionError, check_choice, check_count
from fxprune.planning import Plan


def plan_of_first_rank(plan: Plan) -> Plan:
    """The plan of the first rank; every rank must call this. In a single process, the plan itself.

    Equal weights give equal plans on equal machines. On different machines, a last digit may differ, and with it a
    channel.
    """
    if not is_distributed():
        return plan
    texts = [plan.to_json()]
    dist.broadcast_object_list(texts, src=0)
    return Plan.from_json(texts[0])


def values_of_first_rank(values: Tensor) -> Tensor:
    """The first rank's values, float64 on the CPU, on every rank."""
    if not is_distributed():
        return values
    moved = values.to("cuda") if dist.get_backend() == "nccl" else values.contiguous()
    dist.broadcast(moved, src=0)
    return moved.cpu()


def check_unwrapped(model: nn.Module) -> nn.Module:
    """The model, after a check that it is not a wrapper.

    Raises:
        OptionError: it is wrapped for data parallel training, or by torch.compile.
    """
    if unwrapped(model) is not model or isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        names = ", ".join(f"model.{name}" for name in model._modules)
        raise OptionError(f"pass the network itself, {names}, and not the {type(model).__name__} around it")
    if isinstance(model, torch.nn.Module):
        return model
    raise OptionError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def check_trained(network: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Raise OptionError unless an optimiser has a parameter of the network."""
    held = {id(p) for optimizer in optimizers for group in _groups(optimizer) for p in group["params"]}
    if not any(id(parameter) in held for parameter in network.parameters()):
        raise OptionError(
            f"no optimiser has a parameter of this {type(network).__name__}: give the network that is trained, and not "
            "a copy of it"
        )


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    if not isinstance(groups := getattr(optimizer, "param_groups", None), list):
        raise OptionError(f"an optimiser must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    return groups


def checked_state(state: Any, names: Iterable[str], done: str, most: int | None = None) -> Mapping[str, Any]:
    """The state of a schedule; ``done``: the name of its count of steps or epochs, of which there are ``most``.

    Raises:
        OptionError: it lacks one of the names, or the count is not possible.
    """
    lacks = [name for name in (*names, done) if not isinstance(state, Mapping) or name not in state]
    if lacks:
        raise OptionError(f"this is not the state of such a schedule: it has no {', '.join(map(repr, lacks))}")
    check_count(OptionError, f"{done!r} of the state", state[done], least=0)
    if most is not None and state[done] > most:
        raise OptionError(f"{done!r} of the state must be at most {most}, not {state[done]!r}")
    found: Mapping[str, Any] = state
    return found


def exclusions(groups: Iterable[Group]) -> tuple[str, ...]:
    """Patterns for ``exclude`` that keep these groups whole."""
    return tuple(glob.escape(group.members[0].tensor) for group in groups)


SHAPES: dict[str, Callable[[float, float], float]] = {
    # The same share of the original each time.
    "linear": lambda ratio, done: ratio * done,
    # More at first, when there is most redundancy (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).
    "cubic": lambda ratio, done: ratio * (1 - (1 - done) ** 3),
    # The same share of the rest each time.
    "geometric": lambda ratio, done: 1 - (1 - ratio) ** done,
}


def ratio_at(step: int, steps: int, ratio: float, shape: str = "linear") -> float:
    """The fraction of the original budget that is removed after a step.

    Args:
        step: from 0 (nothing is removed) to ``steps`` (exactly ``ratio`` is).
        steps: the number of steps.
        ratio: the fraction after the last step, ``0 <= ratio < 1``.
        shape: "linear", "cubic" or "geometric".

    Raises:
        RatioError: the ratio is invalid.
        OptionError: the shape is unknown, or the step does not exist.
    """
    ratio = check_ratio(ratio)
    check_choice(OptionError, "shape", shape, tuple(SHAPES))
    check_count(OptionError, "steps", steps)
    check_count(OptionError, "step", step, least=0)
    if step > steps:
        raise OptionError(f"step must be from 0 to {steps}, not {step!r}")
    if step in (0, steps):
        return ratio if step else 0.0
    return SHAPES[shape](ratio, step / steps)
