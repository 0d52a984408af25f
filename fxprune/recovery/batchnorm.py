"""Batch norm statistics, measured again on the pruned network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.calibration.statistic import add_over_ranks
from fxprune.recovery.base import Work, recovery
from fxprune.recovery.walking import Walk
from fxprune.reporting import RecoveryRow
from fxprune.util.registry import Named

_Norm = nn.modules.batchnorm._BatchNorm


@recovery("batchnorm")
@dataclass(frozen=True)
class BatchNorm(Named):
    """Sets the running mean and variance of every batch norm to those of its input, in the order of the network.

    Each is measured after all batch norms before it have their new statistics, over all calibration data at once, so
    the result does not depend on how the data are split into batches. The variance is unbiased, as in training.
    """

    def recover(self, work: Work) -> RecoveryRow:
        """Rewrite running means and variances."""
        batches = work.batches(self.name)
        graph = work.pruned.graphs["eval"]
        walk = Walk(work.pruned, graph, batches)
        found = _batch_norms(work.pruned, graph)
        for node, norm in work.steps.counted(self.name, found.items(), len(found)):
            _measure(walk, node, norm)
        changed = tuple(str(node.target) for node in found)
        return RecoveryRow(self.name, changed, _left(work.pruned, found), work.seen)


def _batch_norms(pruned: nn.Module, graph: fx.Graph) -> dict[fx.Node, _Norm]:
    found = {n: pruned.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
    uses = [id(module) for module in found.values()]
    return {n: m for n, m in found.items() if isinstance(m, _Norm) and _has_statistics(m) and uses.count(id(m)) == 1}


def _left(pruned: nn.Module, found: dict[fx.Node, _Norm]) -> dict[str, str]:
    known = set(found.values())
    norms = ((n, m) for n, m in pruned.named_modules() if isinstance(m, _Norm) and _has_statistics(m))
    return {name: "the graph does not call it exactly once" for name, norm in norms if norm not in known}


def _has_statistics(norm: _Norm) -> bool:
    return norm.running_mean is not None and norm.running_var is not None


def _measure(walk: Walk, node: fx.Node, norm: _Norm) -> None:
    (source,) = node.all_input_nodes
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = measure_batch_norms([walk.before(b, node)[source] for b in range(len(walk))])
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def measure_batch_norms(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (channels,), float64, of all ranks' batches (samples, channels, ...) together."""
    rows = [value.double().transpose(0, 1).flatten(1) for value in values]
    count = torch.tensor([sum(row.shape[1] for row in rows)], dtype=torch.float64, device=rows[0].device)
    total = torch.stack([row.sum(1) for row in rows]).sum(0)
    add_over_ranks([count, total])
    mean = total / count
    squares = torch.stack([(row - mean.unsqueeze(1)).square().sum(1) for row in rows]).sum(0)
    add_over_ranks([squares])
    return mean, squares / (count - 1).clamp_min(1)
