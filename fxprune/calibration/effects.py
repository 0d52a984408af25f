"""What zeroing sets of channels does to the network's output, measured without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis.groups import Group
from fxprune.axes.elements import owned_by
from fxprune.calibration.collecting import Collector, PrivateNetwork
from fxprune.calibration.statistic import add_over_ranks

__all__ = ["output_changes"]

Entries = list[tuple[str, int, Tensor]]


def output_changes(collector: Collector, sets: Sequence[tuple[Group, NDArray[np.int64]]]) -> NDArray[np.float64]:
    """The mean change of the output when all entries of each set of units are zero, one masked run a set and batch.

    The change is the divergence ``KL(softmax(z) || softmax(z'))`` over dim 1, averaged over the other dims, for outputs
    of two dims and more, and the mean squared error for others; several output tensors add up.

    Returns:
        One number for each set.
    """
    network = PrivateNetwork(collector.graph, collector.model)
    totals = torch.zeros(len(sets) + 1, dtype=torch.float64)
    with torch.no_grad():
        for _, batch in collector.batches():
            whole = network.run(batch.sample)
            totals[-1] += batch.size
            for number, (group, units) in enumerate(sets):
                with _zeroed(network, _entries(group, units)):
                    totals[number] += _difference(whole, network.run(batch.sample)) * batch.size
    add_over_ranks([totals])
    found: NDArray[np.float64] = (totals[:-1] / totals[-1]).numpy()
    return found


def _entries(group: Group, units: NDArray[np.int64]) -> Entries:
    """The entries that go with the units: all of the masked original's but running variances, by which it divides."""
    found: Entries = []
    for member in group.members:
        if not member.tensor.endswith("running_var"):
            needed, elements = owned_by(member.axis, group.variable)
            index = np.unique(elements[np.isin(needed, units)])
            found.append((member.tensor, member.dim, torch.from_numpy(index)))
    return found


@contextmanager
def _zeroed(network: PrivateNetwork, entries: Entries) -> Iterator[None]:
    known = {**network.parameters, **network.buffers}
    touched = {name: known[name] for name, _, _ in entries if name in known and known[name].is_floating_point()}
    before = {name: tensor.clone() for name, tensor in touched.items()}
    try:
        for name, dim, index in entries:
            if name in touched:
                touched[name].index_fill_(dim, index.to(touched[name].device), 0)
        yield
    finally:
        for name, tensor in touched.items():
            tensor.copy_(before[name])


def _difference(whole: object, masked: object) -> float:
    pairs = zip(_tensors(whole), _tensors(masked), strict=True)
    return sum(float(_divergence(a, b) if a.ndim > 1 else F.mse_loss(b, a)) for a, b in pairs)


def _tensors(output: object) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _divergence(whole: Tensor, masked: Tensor) -> Tensor:
    target, found = torch.log_softmax(whole, 1), torch.log_softmax(masked, 1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(1).mean()
