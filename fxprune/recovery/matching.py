"""A few passes of gradient descent towards the values inside the original, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from fxprune.calibration import balance
from fxprune.calibration.balance import Weights
from fxprune.calibration.effects import joined
from fxprune.calibration.statistic import add_over_ranks, least_over_ranks
from fxprune.capture.samples import Sample
from fxprune.errors import RecoveryError, described
from fxprune.recovery.base import Work, recovery
from fxprune.recovery.layers import find_layers
from fxprune.recovery.walking import values_of, watched
from fxprune.reporting import RecoveryRow
from fxprune.util.paths import attribute
from fxprune.util.registry import Named

# The rate grows over at least this many steps: before, the moments come from few gradients.
_FIRST_STEPS = 5
# The best rates may let the loss rise at first, but by less than this factor.
_MOST_RISE = 2.0
_STEPS_OF_A_PASS = 16
# With outputs that have positions, a gradient is as good from so many times fewer samples.
_DENSE = 4
# Steps of matrices, relative to those of other tensors; larger matrices (the shorter side) would take longer to make
# orthogonal than their gradients take.
_OF_MATRICES, _MOST_ROWS = 0.5, 256
# Those take Adam's steps, shorter the wider they are: changes of a row's entries add up (Yang et al., 2021).
_STEPS_ALONE = 16
# How much the first place counts, the last, and the outputs, if those have no positions: then they are few numbers.
_SHARES = (0.5, 2.0, 0.25)
# Mirrored samples are used if the original's outputs for so many rows correlate so much with those for the samples.
_ROWS_MIRRORED, _ALIKE = 256, 0.8
# If the loss rises, a quarter of the rate is tried, up to this number of rates.
_RATES = 5
_LEAST_SCALE = 1e-3
# The most bytes of the original's values that are kept, and the rows run together to compute them.
_MOST_BYTES, _ROWS_TOGETHER = 1 << 31, 16


@recovery("match")
@dataclass(frozen=True)
class Match(Named):
    """Trains the kept values for a few passes over the calibration, to match the original's outputs and
    residual streams (without streams, the outputs of each layer behind a cut). Labels are not used.

    The loss is the sum over those places of the squared difference, divided by the original's variance. If the
    outputs have no positions, later places count more, and the outputs less. If some classes of the outputs are rare,
    so that positions are weighted, the divergence of the predictions is added, scaled to begin as large as the squared
    difference of the outputs. If the outputs predict tokens, with a class for each row of a table of tokens, the loss
    is the divergence of the predictions alone. If only a ReLU reads a layer, the ReLU's outputs are compared. Every
    second pass sees images mirrored, if the original's outputs for them are alike.

    Steps are orthogonal for matrices and kernels (Muon), and Adam's for the rest, shorter for wide matrices. Rates fall
    linearly.

    Held-out samples are not trained on; on them, the loss must fall. Embedding tables do not change, nor do weights
    tied to them. Under ``torch.distributed`` gradients are summed over ranks; the rank with the fewest batches sets the
    number of steps.

    Args:
        passes: how often each sample is seen.
        rate: the largest step of a tensor's entries, relative to their root mean square; a quarter of it, a sixteenth
            and so on if the loss would rise, on the samples trained on or on those that are held out.
        batch: samples per step; a quarter of it where outputs have positions (pixels, tokens); fewer, but at least two,
            if a pass would have fewer than sixteen steps.

    Raises:
        RecoveryError: an argument is out of range.
    """

    passes: int = 4
    rate: float = 0.02
    batch: int = 16

    def __post_init__(self) -> None:
        if self.passes < 1 or self.batch < 1 or not 0 < self.rate < math.inf:
            raise RecoveryError("passes and batch must be at least 1, rate above 0")

    def recover(self, work: Work) -> RecoveryRow:
        """Change every floating-point parameter that no embedding reads; none if the network cannot be trained."""
        work.batches(self.name)
        tables = [attribute(work.pruned, name) for name in work.tables]
        floating = ((n, p) for n, p in work.pruned.named_parameters() if p.is_floating_point())
        own = {name: parameter for name, parameter in floating if all(parameter is not table for table in tables)}
        pair = _Pair(work)
        if not pair.found or not own:
            return RecoveryRow(self.name, (), pair.left, work.seen)
        before = [parameter.detach().clone() for parameter in own.values()]
        try:
            batches, apart = self._batches(work, pair)
            losses = self._train(work, pair, list(own.values()), before, batches, apart)
        except Exception as error:  # a forward written for one batch size, an op without a gradient
            why = f"not done, as the network cannot be trained on parts of a batch ({described(error)})"
            _put(own.values(), before)
            return RecoveryRow(self.name, (), {}, work.seen, guards=(why,))
        if len(losses) < max(len(batches), 1):
            why = "not done, as the loss rises however short the steps are"
            return RecoveryRow(self.name, (), {}, work.seen, guards=(why,))
        few = max(len(losses) // 10, 1)
        first, last = (sum(some) / few / pair.terms for some in (losses[:few], losses[-few:]))
        return RecoveryRow(self.name, tuple(own), {}, work.seen, first, last)

    def _train(
        self,
        work: Work,
        pair: _Pair,
        own: Sequence[nn.Parameter],
        before: Sequence[Tensor],
        batches: Sequence[tuple[Sample, Tensor]],
        apart: Sequence[tuple[Sample, Tensor]],
    ) -> list[float]:
        """The loss of each step, at the first rate at which it does not rise, nor on the held-out rows ``apart``."""
        asked = [parameter.requires_grad for parameter in own]
        try:
            for parameter in own:
                parameter.requires_grad_(True)
            most = pair.whole(apart)
            for turn in range(_RATES):
                losses = self._descend(work, pair, own, batches, self.rate / 4**turn)
                if len(losses) == len(batches) and pair.whole(apart) <= most:
                    return losses
                _put(own, before)
        finally:
            for parameter, kept in zip(own, asked, strict=True):
                parameter.grad = None
                parameter.requires_grad_(kept)
        return []

    def _descend(
        self,
        work: Work,
        pair: _Pair,
        own: Sequence[nn.Parameter],
        batches: Sequence[tuple[Sample, Tensor]],
        rate: float,
    ) -> list[float]:
        """The loss of each step, up to the step at which it has risen above the first ones."""
        descent, losses, growing = _Steps(own), list[float](), max(_FIRST_STEPS, len(batches) // 10)
        for step, (sample, rows) in enumerate(work.steps.counted(self.name, batches, len(batches))):
            with torch.enable_grad():
                loss = pair.loss(sample, rows)
            loss.backward()  # type: ignore[no-untyped-call]
            whole = loss.detach().clone()
            add_over_ranks([whole, *(p.grad for p in own if p.grad is not None)])
            losses.append(float(whole))
            if not _loss_rises(losses):
                descent.step(rate * min((step + 1) / growing, 1 - step / (len(batches) + 1)))
            for parameter in own:
                parameter.grad = None
            if _loss_rises(losses):
                break
        return losses

    def _batches(self, work: Work, pair: _Pair) -> tuple[list[tuple[Sample, Tensor]], list[tuple[Sample, Tensor]]]:
        """Rows of samples for all steps, shuffled again in every pass, the same number on all ranks; held-out rows."""
        generator = torch.Generator().manual_seed(work.seed)
        pools: dict[str, list[tuple[Sample, Tensor, Weights | None]]] = {}
        for sample, held, weights in zip(work.samples, work.held, work.weights, strict=True):
            pools.setdefault(_kind(sample), []).append((sample, held, weights))
        whole = [(joined([p[0] for p in pool]), torch.cat([p[1] for p in pool])) for pool in pools.values()]
        for (sample, _), pool in zip(whole, pools.values(), strict=True):
            pair.weights[id(sample)] = Weights.joined([p[2] for p in pool])
        seen = [(pair.mirrored(sample), sample) for sample, _ in whole]
        count = sum(int((~held).sum()) for _, held in whole)
        most = max(self.batch // _DENSE, 1) if pair.dense else self.batch
        size = max(min(most, count // _STEPS_OF_A_PASS), min(most, 2))
        chosen: list[tuple[Sample, Tensor]] = []
        for turn in range(self.passes, 0, -1):
            parts: list[tuple[Sample, Tensor]] = []
            for (_, held), samples in zip(whole, seen, strict=True):
                rows = torch.nonzero(~held).reshape(-1)
                rows = rows[torch.randperm(len(rows), generator=generator)]
                parts += [(samples[turn % 2], part) for part in torch.split(rows, size) if len(part)]
            chosen += [parts[place] for place in torch.randperm(len(parts), generator=generator).tolist()]
        apart = [(s, part) for s, held in whole for part in torch.split(torch.nonzero(held).reshape(-1), size)]
        apart = [(sample, part) for sample, part in apart if len(part)]
        return chosen[: least_over_ranks(len(chosen))], apart


class _Steps:
    """Steps of these sizes, relative to each tensor's root mean square: for matrices (also those of convolutions) the
    nearest orthogonal matrix to the momentum (Muon; Jordan et al., 2024), for other tensors Adam (Kingma and Ba, 2015).
    """

    def __init__(self, own: Sequence[nn.Parameter]) -> None:
        self._own, self._scales = own, [_scale(parameter) for parameter in own]
        self._means, self._squares = ([torch.zeros_like(p) for p in own] for _ in range(2))
        self._steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step against the gradients, tensor by tensor, so that little extra memory is needed."""
        self._steps += 1
        first, second = (1 - decay**self._steps for decay in (0.9, 0.999))
        for own, mean, square, scale in zip(self._own, self._means, self._squares, self._scales, strict=True):
            if own.grad is None:
                continue
            mean.lerp_(own.grad, 0.1)
            if _is_matrix(own):
                own.sub_(_orthogonal(own.grad.lerp(mean, 0.9)), alpha=_OF_MATRICES * rate * scale)
            else:
                square.mul_(0.999).addcmul_(own.grad, own.grad, value=0.001)
                own.addcdiv_(mean, square.sqrt().mul_(second**-0.5).add_(1e-8), value=-rate * scale / first)


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a step is made orthogonal."""
    return 0 < _rows(parameter) <= _MOST_ROWS


def _rows(parameter: Tensor) -> int:
    """The shorter side of a matrix, or of a kernel of them; 0 for other tensors."""
    if parameter.ndim < 2 or min(parameter.shape[:2]) < 2:
        return 0
    return min(len(parameter), parameter.numel() // len(parameter))


def _orthogonal(value: Tensor) -> Tensor:
    """About the nearest matrix with equal singular values, scaled to a root mean square of one, by three steps of a
    Newton-Schulz iteration with the coefficients of Muon."""
    flat = value.flatten(1).float()
    flat = flat if len(flat) <= flat.shape[1] else flat.mT
    flat = flat / flat.norm().clamp_min(1e-30)
    for _ in range(3):
        square = flat @ flat.mT
        flat = torch.addmm(flat, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), flat, beta=3.4445)
    flat = flat / flat.square().mean().sqrt().clamp_min(1e-30)
    return (flat if len(flat) == len(value) else flat.mT).reshape(value.shape).to(value.dtype)


class _Place(NamedTuple):
    """A place where the two networks are compared: a node of each, the channel dim, and the channels that stay."""

    original: fx.Node
    pruned: fx.Node
    dim: int
    kept: Tensor | None


_Compared = tuple[Tensor, Tensor, int, Tensor | None]
"""A value of the pruned network, the original's, the dim of channels, and how much each position counts."""


class _Pair:
    """The original and the pruned network, run on the same samples.

    Attributes:
        found: the layers behind a cut.
        left: layers that cannot be compared, with the reason.
        places: where the networks are compared, in addition to their outputs.
        terms: the number of terms of the loss.
        dense: whether an output has positions.
        weights: by id of a sample, how much each of its positions counts.
    """

    def __init__(self, work: Work) -> None:
        self.found, self.left = find_layers(work.graph, work.pruned, work.masks)
        graphs = work.graph.captured.graph, work.pruned.graphs["eval"]
        nodes = {node.name: node for node in graphs[1].nodes}
        (end,) = graphs[0].find_nodes(op="output")
        shapes = [getattr(node.meta.get("val"), "shape", ()) for node in end.all_input_nodes]
        self.dense, self._predicts = any(len(shape) > 2 for shape in shapes), work.predicts_tokens
        inner = [layer for layer in self.found if end not in layer.answer.users]
        inner = [] if any(map(work.predicts_tokens, shapes)) else inner
        whole = [layer for layer in inner if layer.kept is None] or inner
        # After the ReLU, if that is the only reader of a layer.
        answers = [(next(iter(one.answer.users)) if one.bounded else one.answer, one) for one in whole]
        self.places = [
            _Place(node, nodes[node.name], layer.first.rows.channel_dim, layer.kept)
            for node, layer in answers
            if node.name in nodes
        ]
        self.terms, self.weights = 1.0, dict[int, Weights | None]()
        # Means over the first steps, as those of few samples are unreliable: the variance at each place and of each
        # output; of the outputs, the relative differences and the divergences.
        self._spreads, self._starts, self._counts = torch.zeros(0), torch.zeros(2, 0), torch.zeros(0)
        self._steps = 0
        # By id of a sample, the original's values for it; empty if they are too large to keep. Then the bytes kept.
        self._known: dict[int, list[Tensor]] = {}
        self._held = 0
        self._original = watched(work.network.module, graphs[0], [place.original for place in self.places])
        self._pruned = watched(work.pruned, graphs[1], [place.pruned for place in self.places])

    def loss(self, sample: Sample, rows: Tensor) -> Tensor:
        """The divergence of predicted tokens on some rows of a sample; else the sum of the differences at all places
        and of the outputs, and, if classes are weighted, of divergences, each scaled to begin as large."""
        part = sample.rows(rows)
        if id(sample) not in self._known:
            self._known[id(sample)] = self._all(sample)
        known = self._known[id(sample)]
        with torch.no_grad():
            wanted = [value[rows.to(value.device)] for value in known] if known else self._wanted(part)
        given, outputs = values_of(self._pruned, part)
        tokens = [pair for pair in zip(outputs, wanted[len(given) :], strict=True) if self._predicts(pair[1].shape)]
        if tokens:
            return torch.stack([balance.divergence(*pair, -1, None).cpu() for pair in tokens]).sum()
        dims = [place.dim for place in self.places] + [balance.class_dim(one) for one in outputs]
        weights = self.weights.get(id(sample))
        weights = None if weights is None else weights[rows]
        values = zip([*given, *outputs], wanted, dims, strict=True)
        compared = [(*one, balance.position_weights(*one[1:], weights)) for one in values]
        differences = torch.stack([balance.difference(*one).cpu() for one in compared])
        apart = torch.zeros(len(outputs))
        if weights is not None:
            apart = torch.stack([balance.divergence(*one).cpu() for one in compared[len(given) :]])
        self._measure(compared, differences.detach(), apart.detach())
        squares, divergences = self._starts
        diverging: Tensor = apart * squares / divergences.clamp_min(1e-12)
        return ((differences / self._spreads) @ self._counts) + diverging.sum()

    def mirrored(self, sample: Sample) -> Sample:
        """The sample with its images mirrored, left for right, if that hardly changes the original's outputs; else as
        it is."""
        twin = sample.mirrored()
        if twin is None or sample.batch_size is None:
            return sample
        rows = torch.arange(min(sample.batch_size, _ROWS_MIRRORED))
        outputs, others = (values_of(self._original, one.rows(rows))[1] for one in (sample, twin))
        if min((balance.correlation(*pair) for pair in zip(outputs, others, strict=True)), default=0.0) < _ALIKE:
            return sample
        weights = self.weights[id(sample)]
        self.weights[id(twin)] = None if weights is None else weights.mirrored()
        return twin

    def whole(self, parts: Sequence[tuple[Sample, Tensor]]) -> float:
        """The loss on all of these rows, of all ranks; 0 without any."""
        total = torch.zeros(1)
        for sample, rows in parts:
            total += len(rows) * self.loss(sample, rows).cpu()
        add_over_ranks([total])
        return float(total)

    def _wanted(self, sample: Sample) -> list[Tensor]:
        """The original's values at all places, and its outputs."""
        found, outputs = values_of(self._original, sample)
        return [*(_kept(place, value) for place, value in zip(self.places, found, strict=True)), *outputs]

    @torch.no_grad()
    def _all(self, sample: Sample) -> list[Tensor]:
        """The same for every row of a sample; an empty list if that is too much to keep."""
        found: list[list[Tensor]] = []
        for rows in torch.split(torch.arange(sample.batch_size or 0), _ROWS_TOGETHER):
            found.append(self._wanted(sample.rows(rows)))
            self._held += sum(value.numel() * value.element_size() for value in found[-1])
            # Some values do not come in rows.
            if self._held > _MOST_BYTES or any(len(value) != len(rows) for value in found[-1] if value.ndim):
                return []
        return [torch.cat(values) for values in zip(*found, strict=True)]

    def _measure(self, compared: Sequence[_Compared], differences: Tensor, apart: Tensor) -> None:
        first, last, output = (1.0, 1.0, 1.0) if self.dense else _SHARES
        self._counts = torch.cat([torch.linspace(first, last, len(self.places)), torch.full((len(apart),), output)])
        self.terms = float(self._counts.sum()) + int(apart.count_nonzero())
        if self._steps < _STEPS_OF_A_PASS:
            self._steps += 1
            spreads = torch.tensor([float(balance.spread(*one[1:])) for one in compared]).clamp_min(1e-12)
            self._spreads = spreads if self._steps == 1 else self._spreads.lerp(spreads, 1 / self._steps)
            starts = torch.stack([(differences / self._spreads)[len(self.places) :], apart])
            self._starts = starts if self._steps == 1 else self._starts.lerp(starts, 1 / self._steps)


def _kept(place: _Place, value: Tensor) -> Tensor:
    return value if place.kept is None else value.index_select(place.dim, place.kept.to(value.device))


def _kind(sample: Sample) -> str:
    """A key, equal for samples that can be concatenated; unique if a sample has no rows."""
    if sample.batch_size is None:
        return str(id(sample))
    return str(sample.map(lambda tensor: tensor.new_empty(tensor.shape[1:], device="meta")))


def _put(own: Iterable[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(own, values, strict=True):
        parameter.data.copy_(value)


def _loss_rises(losses: Sequence[float]) -> bool:
    """Whether the last losses, checked every few steps, are far above the smaller of the first two."""
    if not math.isfinite(losses[-1]):
        return True
    looked = len(losses) % (2 * _FIRST_STEPS) == 0
    return looked and sum(losses[-_FIRST_STEPS:]) / _FIRST_STEPS > _MOST_RISE * min(losses[:2])


def _scale(parameter: Tensor) -> float:
    """The size of a step at a rate of one."""
    size = max(float(parameter.detach().square().mean().sqrt()), _LEAST_SCALE)
    return size if _rows(parameter) <= _MOST_ROWS else size * _STEPS_ALONE / _rows(parameter)
