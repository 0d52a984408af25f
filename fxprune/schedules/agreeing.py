"""One plan on all ranks of an initialised ``torch.distributed``."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from fxprune.planning import Plan
from fxprune.statistics.reducing import is_distributed

__all__ = ["agreed", "agreed_values"]


def agreed(plan: Plan) -> Plan:
    """The plan of the first rank, which every rank has to ask for; the plan itself in a single process.

    Equal weights give equal plans on equal machines. Where ranks run on different ones, a last digit may differ, and
    with it a channel.
    """
    if not is_distributed():
        return plan
    texts = [plan.to_json()]
    dist.broadcast_object_list(texts, src=0)
    return Plan.from_json(texts[0])


def agreed_values(values: Tensor) -> Tensor:
    """The first rank's values, float64 on the CPU, in every rank."""
    if not is_distributed():
        return values
    moved = values.to("cuda") if dist.get_backend() == "nccl" else values.contiguous()
    dist.broadcast(moved, src=0)
    return moved.cpu()
