"""What zeroing sets of channels does to the network's output, measured without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.analysis.groups import Group
from fxprune.axes.elements import FloatArray, owned_by
from fxprune.axes.expressions import IndexArray
from fxprune.calibration.balance import Weights, class_dim, floating_tensors
from fxprune.calibration.batches import Batch, checksums
from fxprune.calibration.collecting import Collector, PrivateNetwork, backward, parts_of
from fxprune.calibration.statistic import add_over_ranks
from fxprune.capture.samples import Sample

_SAMPLES_TOGETHER = 4  # that are run back together


def output_changes(collector: Collector, sets: Sequence[tuple[Group, IndexArray]]) -> FloatArray:
    """The mean change of the output when all entries of each set of channels are zero, one masked run a set and batch.

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
            for number, (group, channels) in enumerate(sets):
                with replaced(network, silent(network, [(group, channels)])):
                    totals[number] += _difference(whole, network.run(batch.sample)) * batch.size
    add_over_ranks([totals])
    found: FloatArray = (totals[:-1] / totals[-1]).numpy()
    return found


class OutputErrors:
    """The errors of the network's outputs when tensors are replaced, on about ``samples`` samples of the calibration;
    see :mod:`fxprune.calibration.balance` for how much each position counts.

    The samples are chosen by their contents, so that the choice does not depend on batches or ranks.
    """

    def __init__(self, collector: Collector, samples: int) -> None:
        self._collector = collector
        self._balance = collector.balance()
        self._network = PrivateNetwork(collector.graph, collector.model)
        self._runs = self._tried(_few(collector, samples))

    def _tried(self, samples: list[Sample]) -> list[tuple[Sample, list[Tensor]]]:
        """The samples in one batch, and their unchanged outputs; one by one if the network takes them only that way."""
        for way in (self._together, list):
            try:
                with torch.no_grad():
                    return [(sample, _tensors(self._network.run(sample.map(torch.clone)))) for sample in way(samples)]
            except Exception:  # the user's own code may be written for one batch size
                continue
        return []

    def _together(self, samples: list[Sample]) -> list[Sample]:
        if not samples:
            return []
        whole, at = Batch(joined(samples), None, len(samples)), self._collector
        return [part.sample for part in parts_of(at.calibration, whole, at.graph, self._network)]

    def of(self, tensors: Mapping[str, Tensor]) -> float:
        """The squared error of the outputs when these tensors replace those of their names, as a share of the outputs'
        squares; NaN if the network cannot run a single sample."""
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), replaced(self._network, tensors):
            for sample, whole in self._runs:
                batch = Batch(sample, None, sample.batch_size or 1)
                weights = None if self._balance is None else self._balance.of(batch)
                for one, other in zip(whole, _tensors(self._network.run(sample.map(torch.clone))), strict=True):
                    sums += squared_error(other, one, weights).cpu()
        add_over_ranks([sums])
        return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


def squared_error(given: Tensor, wanted: Tensor, weights: Weights | None) -> Tensor:
    """The squared error of an output and the wanted output's square, summed with the weights of positions, ``(2,)``."""
    each = weights.at(wanted, class_dim(wanted)) if weights is not None and wanted.ndim > 1 else None
    squares = [(given - wanted).square(), wanted.square()]
    return torch.stack([(square if each is None else square * each).sum() for square in squares])


def _few(collector: Collector, samples: int) -> list[Sample]:
    """About ``samples`` samples of the calibration, chosen by their contents."""
    chosen: list[tuple[int, Sample]] = []
    for _, batch in collector.batches():
        rows = batch.parts() if batch.sample.batch_size == batch.size else [batch]
        chosen += zip(checksums(batch), (row.sample for row in rows), strict=False)
        chosen = sorted(chosen, key=lambda pair: pair[0])[:samples]
    last = _lowest([check for check, _ in chosen], samples)
    return [sample for check, sample in chosen if check <= last]


def curvatures(collector: Collector, samples: int, nodes: Sequence[fx.Node]) -> dict[fx.Node, Tensor]:
    """How much the predictions change with errors of the values (..., channels) of some nodes, by node.

    It is the second moment of gradients, ``(channels, channels)``, summed over the positions of a sample, on about
    ``samples`` samples; nodes without gradients are left out. The loss is the negative log-likelihood of classes drawn
    from the predictions. So half of ``e' curvature e``, averaged over the errors ``e``, is to second order the
    divergence of a sample's predictions, if errors do not depend on gradients.
    """
    sizes = {node: node.meta["val"].shape[-1] for node in nodes}
    found = {node: torch.zeros(size, size, dtype=torch.float64) for node, size in sizes.items()}

    def watcher(node: fx.Node) -> Callable[[Tensor], None]:
        def arrived(gradient: Tensor) -> None:
            rows = gradient.flatten(0, -2)
            found[node] += (rows.mT @ rows).double().cpu()

        return lambda value: value.register_hook(arrived) if value.requires_grad else None  # type: ignore

    draw = torch.Generator().manual_seed(collector.seed)
    network = PrivateNetwork(collector.graph, collector.model, {(node, None): [watcher(node)] for node in nodes})
    few = _few(collector, samples)
    with suppress(Exception):  # a forward written for one batch size, an op without a gradient
        for start in range(0, len(few), _SAMPLES_TOGETHER):
            together = joined(few[start : start + _SAMPLES_TOGETHER])
            with backward(network, together, lambda output: _surprise(output, draw)):
                pass
    count = torch.tensor([len(few)], dtype=torch.float64)
    add_over_ranks([*found.values(), count])
    return {n: f / count for n, f in found.items() if f.any() and f.isfinite().all()}


def _surprise(output: object, draw: torch.Generator) -> Tensor:
    """The negative log-likelihood of classes drawn from the predictions, summed over all of them."""
    total = torch.zeros(())
    for leaf in floating_tensors(output):
        values = leaf.movedim(class_dim(leaf), -1).flatten(0, -2)
        noise = torch.empty(values.shape).exponential_(generator=draw).log().to(values)
        chosen = (values.detach() - noise).argmax(1, keepdim=True)
        total = total + values.log_softmax(1).gather(1, chosen).sum().cpu()
    return total


def joined(samples: Sequence[Sample]) -> Sample:
    """Samples of one kind, joined to one batch."""
    tensors = zip(*(sample.tensors for sample in samples), strict=True)
    return samples[0].map(lambda _: _side_by_side(next(tensors)))


def _side_by_side(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(tensors) if tensors[0].ndim else tensors[0]


def _lowest(checks: Sequence[int], count: int) -> int:
    """The least threshold with ``count`` of all ranks' numbers at or below it; all are below 2 ** 32."""
    low, high = -1, (1 << 32) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found = torch.tensor([float(sum(check <= middle for check in checks))])
        add_over_ranks([found])
        low, high = (low, middle) if found >= count else (middle, high)
    return high


def silent(network: PrivateNetwork, sets: Sequence[tuple[Group, IndexArray]]) -> dict[str, Tensor]:
    """The tensors of groups with all entries of some channels set to zero, as in the masked original; running variances
    stay, because batch norm divides by them."""
    known = {**network.parameters, **network.buffers}
    found: dict[str, Tensor] = {}
    for group, channels in sets:
        for member in group.members:
            name = member.tensor
            if name in known and known[name].is_floating_point() and not name.endswith("running_var"):
                needed, elements = owned_by(member.axis, group.variable)
                index = torch.from_numpy(np.unique(elements[np.isin(needed, channels)]))
                tensor = found.setdefault(name, known[name].detach().clone())
                tensor.index_fill_(member.dim, index.to(tensor.device), 0)
    return found


@contextmanager
def replaced(network: PrivateNetwork, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, these tensors replace those of their names."""
    known = {**network.parameters, **network.buffers}
    before = {name: known[name].clone() for name in tensors}
    try:
        for name, tensor in tensors.items():
            known[name].copy_(tensor)
        yield
    finally:
        for name, tensor in before.items():
            known[name].copy_(tensor)


def _difference(whole: object, masked: object) -> float:
    pairs = zip(_tensors(whole), _tensors(masked), strict=True)
    return sum(float(_divergence(a, b) if a.ndim > 1 else F.mse_loss(b, a)) for a, b in pairs)


def _tensors(output: object) -> list[Tensor]:
    return [leaf.double() for leaf in floating_tensors(output)]


def _divergence(whole: Tensor, masked: Tensor) -> Tensor:
    target, found = torch.log_softmax(whole, 1), torch.log_softmax(masked, 1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(1).mean()
