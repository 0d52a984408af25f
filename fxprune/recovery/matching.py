"""A few passes of gradient descent towards what the original's parts give, without labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.calibration.collecting import PrivateNetwork
from fxprune.calibration.effects import joined
from fxprune.calibration.rows import evened
from fxprune.calibration.statistic import add_over_ranks, least_over_ranks
from fxprune.capture.samples import Sample
from fxprune.errors import RecoveryError, described
from fxprune.recovery.base import Work, recovery
from fxprune.recovery.layers import find_layers
from fxprune.recovery.walking import inputs_of
from fxprune.reporting import RecoveryRow
from fxprune.rules.call import parameter_name
from fxprune.util.paths import attribute
from fxprune.util.registry import Named

# The step grows over so many steps; the moments of the gradients are few before.
_FIRST_STEPS = 5
_STEPS_OF_A_PASS = 16
# A rate with which the loss rises is given up for a quarter of it, so often.
_RATES = 5
_LEAST_SCALE = 1e-3


@recovery("match")
@dataclass(frozen=True)
class Match(Named):
    """Trains the kept values for a few passes over the calibration, so that the outputs and what goes into the residual
    streams are the original's (without streams, what each layer behind a cut gives). No labels are looked at.

    The loss adds up, over those places, the squared difference as a share of the original's variance. Behind a layer
    that only a ReLU reads, what that lets through counts. Steps are Adam's, with a rate that falls along a line.

    Samples that are held out are not trained on. Embeddings, and what they share with others, stay. Under
    ``torch.distributed`` gradients are added up over ranks, and steps are as many as the rank with the fewest has.

    Args:
        passes: how often each sample is seen.
        rate: the longest step of each tensor's entries, as a share of their root mean square; a quarter, a sixteenth
            and so on where the loss would rise.
        batch: samples of a step; fewer, but two, where a pass would have less than sixteen steps.

    Raises:
        RecoveryError: a value makes no sense.
    """

    passes: int = 4
    rate: float = 0.02
    batch: int = 16

    def __post_init__(self) -> None:
        if self.passes < 1 or self.batch < 1 or not 0 < self.rate < math.inf:
            raise RecoveryError("passes and batch must be at least 1, rate above 0")

    def recover(self, work: Work) -> RecoveryRow:
        """Change every floating parameter that no embedding reads; nothing where the network cannot be trained so."""
        work.batches(self.name)
        read = (parameter_name(c.arguments["weight"]) for c in work.graph.calls.values() if c.name == "embedding")
        tables = [attribute(work.pruned, name) for name in read if name is not None]
        floating = ((n, p) for n, p in work.pruned.named_parameters() if p.is_floating_point())
        own = {name: parameter for name, parameter in floating if all(parameter is not table for table in tables)}
        pair = _Pair(work)
        batches = self._batches(work)
        if not pair.places or not own or not batches:
            return RecoveryRow(self.name, (), pair.left, work.seen)
        before = [parameter.detach().clone() for parameter in own.values()]
        try:
            losses = self._train(work, pair, list(own.values()), before, batches)
        except Exception as error:  # a forward that takes no other batch, an op without a gradient
            why = f"not done, as the network cannot be trained on parts of a batch ({described(error)})"
            _put(own.values(), before)
            return RecoveryRow(self.name, (), {}, work.seen, guards=(why,))
        if len(losses) < len(batches):
            why = "not done, as the loss rises however short the steps are"
            return RecoveryRow(self.name, (), {}, work.seen, guards=(why,))
        few = max(len(losses) // 10, 1)
        first, last = (sum(some) / few / len(pair.places) for some in (losses[:few], losses[-few:]))
        return RecoveryRow(self.name, tuple(own), {}, work.seen, first, last)

    def _train(
        self,
        work: Work,
        pair: _Pair,
        own: Sequence[nn.Parameter],
        before: Sequence[Tensor],
        batches: Sequence[tuple[Sample, Tensor]],
    ) -> list[float]:
        """The loss of each step, of the first rate with which it does not rise."""
        asked = [parameter.requires_grad for parameter in own]
        losses: list[float] = []
        try:
            for parameter in own:
                parameter.requires_grad_(True)
            for turn in range(_RATES):
                losses = self._descend(work, pair, own, batches, self.rate / 4**turn)
                if len(losses) == len(batches):
                    break
                _put(own, before)
        finally:
            for parameter, kept in zip(own, asked, strict=True):
                parameter.grad = None
                parameter.requires_grad_(kept)
        return losses

    def _descend(
        self,
        work: Work,
        pair: _Pair,
        own: Sequence[nn.Parameter],
        batches: Sequence[tuple[Sample, Tensor]],
        rate: float,
    ) -> list[float]:
        """The loss of each step, up to where it is above that of the first ones."""
        optimizer = torch.optim.Adam([{"params": [p], "lr": rate * _scale(p)} for p in own])
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / _FIRST_STEPS, 1 - step / (len(batches) + 1))
        )
        losses: list[float] = []
        for sample, rows in work.steps.counted(self.name, batches, len(batches)):
            loss = pair.loss(_part(sample, rows))
            loss.backward()  # type: ignore[no-untyped-call]
            whole = loss.detach().clone()
            add_over_ranks([whole, *(p.grad for p in own if p.grad is not None)])
            losses.append(float(whole))
            if _rises(losses):
                optimizer.zero_grad()
                break
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return losses

    def _batches(self, work: Work) -> list[tuple[Sample, Tensor]]:
        """Rows of samples for all steps, from anywhere, shuffled anew in every pass; on all ranks as many."""
        generator = torch.Generator().manual_seed(work.seed)
        pools: dict[str, list[tuple[Sample, Tensor]]] = {}
        for sample, held in zip(work.samples, work.held, strict=True):
            if not held.all():
                pools.setdefault(_kind(sample), []).append((sample, held))
        whole = [(joined([s for s, _ in pool]), torch.cat([~held for _, held in pool])) for pool in pools.values()]
        count = sum(int(fitted.sum()) for _, fitted in whole)
        size = max(min(self.batch, count // _STEPS_OF_A_PASS), min(self.batch, 2))
        chosen: list[tuple[Sample, Tensor]] = []
        for _ in range(self.passes):
            parts: list[tuple[Sample, Tensor]] = []
            for sample, fitted in whole:
                rows = torch.nonzero(fitted).reshape(-1)
                rows = rows[torch.randperm(len(rows), generator=generator)]
                parts += [(sample, part) for part in torch.split(rows, size)]
            chosen += [parts[place] for place in torch.randperm(len(parts), generator=generator).tolist()]
        return chosen[: least_over_ranks(len(chosen))]


class _Place(NamedTuple):
    """Where the two networks are compared: a node of each, the channels that stay, and between which bounds."""

    original: fx.Node
    pruned: fx.Node
    dim: int
    kept: Tensor | None
    bounds: tuple[float, float]

    def values(self, given: Mapping[fx.Node, Tensor], wanted: Mapping[fx.Node, Tensor]) -> tuple[Tensor, Tensor, int]:
        """What is compared, and the dim of channels."""
        one, other = given[self.pruned], wanted[self.original]
        other = other if self.kept is None else other.index_select(self.dim, self.kept.to(other.device))
        return one.clamp(*self.bounds), other.clamp(*self.bounds), self.dim


class _Pair:
    """The original and the pruned network, run on the same samples.

    Attributes:
        places: where they are compared beside their outputs.
        left: layers that cannot be compared, with the reason.
    """

    def __init__(self, work: Work) -> None:
        found, self.left = find_layers(work.graph, work.pruned, work.masks)
        graphs = work.graph.captured.graph, work.pruned.graphs["eval"]
        nodes = {node.name: node for node in graphs[1].nodes}
        whole = [layer for layer in found if layer.kept is None] or found
        self.places = [
            _Place(layer.answer, nodes[layer.answer.name], layer.first.rows.channel_dim, layer.kept, layer.bounds)
            for layer in whole
            if layer.answer.name in nodes
        ]
        network = PrivateNetwork(work.graph, work.model).module
        # Variances, added up over the steps: those of few samples are little to go by.
        self._spreads: list[float] = []
        self._steps = 0
        self._original = _Watched(network, graphs[0], {place.original for place in self.places})
        self._pruned = _Watched(work.pruned, graphs[1], {place.pruned for place in self.places})

    def loss(self, sample: Sample) -> Tensor:
        """Differences of all places and of the outputs, added up."""
        with torch.no_grad():
            wanted, wanted_outputs = self._original.run_on(sample)
        with torch.enable_grad():
            given, outputs = self._pruned.run_on(sample)
            compared = [place.values(given, wanted) for place in self.places]
            pairs = zip(outputs, wanted_outputs, strict=True)
            compared += [(one, other, -1 if one.ndim == 3 else 1) for one, other in pairs]
            self._spreads += [0.0] * (len(compared) - len(self._spreads))
            self._steps += 1
            parts = []
            for place, (one, other, dim) in enumerate(compared):
                error, spread = _difference(one, other, dim)
                self._spreads[place] += float(spread)
                parts.append(error / max(self._spreads[place] / self._steps, 1e-12))
            return torch.stack(parts).sum()


class _Watched(fx.Interpreter):
    """A graph that keeps what some of its nodes give."""

    def __init__(self, module: nn.Module, graph: fx.Graph, watched: Collection[fx.Node]) -> None:
        super().__init__(module, graph=graph)
        self._watched = watched
        self._found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._watched:
            self._found[n] = value
        return value

    def run_on(self, sample: Sample) -> tuple[dict[fx.Node, Tensor], list[Tensor]]:
        """The values of the watched nodes, and the floating outputs."""
        self._found = {}
        output = self.run(initial_env=inputs_of(list(self.graph.nodes), sample), enable_io_processing=False)
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return self._found, leaves


def _difference(one: Tensor, other: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The mean squared difference, and the variance of ``other`` along all dims but that of channels."""
    errors, others = (one - other).square(), [d for d in range(other.ndim) if d != dim % max(other.ndim, 1)]
    if other.ndim < 3 or dim != -1:
        return errors.mean(), other.var(others or None, correction=0).mean()
    each = evened(other.square().sum(dim), len(other)).unsqueeze(dim)
    each = each / each.mean()
    spread = (other - (other * each).mean(others, keepdim=True)).square()
    return (errors * each).mean(), (spread * each).mean()


def _kind(sample: Sample) -> str:
    """Equal for samples that can stand side by side; of its own where a sample has no rows."""
    if sample.batch_size is None:
        return str(id(sample))
    return str(sample.map(lambda tensor: tensor.new_empty(tensor.shape[1:], device="meta")))


def _part(sample: Sample, rows: Tensor) -> Sample:
    """Some rows of a sample; all where it does not come in rows."""
    if sample.batch_size is None:
        return sample
    return sample.map(lambda tensor: tensor[rows.to(tensor.device)] if tensor.ndim else tensor)


def _put(own: Iterable[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(own, values, strict=True):
        parameter.data.copy_(value)


def _rises(losses: Sequence[float]) -> bool:
    """Whether the last losses, looked at now and then, are above the first two, which are of next to no steps."""
    if not math.isfinite(losses[-1]):
        return True
    looked = len(losses) % (2 * _FIRST_STEPS) == 0
    return looked and sum(losses[-_FIRST_STEPS:]) / _FIRST_STEPS > 1.1 * sum(losses[:2]) / 2


def _scale(parameter: Tensor) -> float:
    return max(float(parameter.detach().square().mean().sqrt()), _LEAST_SCALE)
