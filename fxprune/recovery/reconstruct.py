"""Least-squares reconstruction, layer by layer, and its simplest case, the folding of means into biases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.calibration.least_squares import AffineMap, Moments, Rows, enough_positions, shrunk_ridge, solve
from fxprune.calibration.statistic import add_over_ranks
from fxprune.errors import RecoveryError, check_count
from fxprune.recovery.base import Work, recovery
from fxprune.recovery.layers import Layer, Norm, Reading, find_layers
from fxprune.recovery.walking import Walk
from fxprune.reporting import RecoveryRow
from fxprune.util.progress import name_seed
from fxprune.util.registry import Named

# The ridge is multiplied by the one of these that has the smallest error on held-out rows.
_RIDGES = (1, 10, 100, 1000)
# The most numbers in rows with bounds, which are all held at once.
_MOST_ELEMENTS = 1 << 27
# The number of feature values that are multiplied at once.
_ELEMENTS_TOGETHER = 1 << 22


@recovery("reconstruct")
@dataclass(frozen=True)
class Reconstruct(Named):
    """Rewrites the weights of every layer behind a cut so that its outputs match the original's (ridge least squares).

    Layers are fitted in the order of the network, each on the inputs that the pruned network, recovered up to there,
    computes for it. A layer that adds to a residual stream is fitted to the original's sum minus the pruned network's
    stream, so that errors do not accumulate. A weight that is read at several places is fitted to all of them together.
    Each problem is solved in closed form from second moments of features and targets (He et al., 2017, arXiv
    1707.06168, section 3, without the choice of channels). The ridge pulls weights to their old values, not to zero.

    If a ReLU is the only reader of a layer's output (after its batch norm, after the sum), only the values that the
    ReLU passes must match: in a few iterations, a target below zero is replaced by the fit if that is below zero too.

    If a layer's error on held-out samples would rise, only its intercept is fitted, or nothing.

    Values that later layers read are kept for all batches, so memory grows with the calibration data.

    Args:
        ridge: strength of the pull to the old weights, in mean squares of the layer's features; ten, a hundred or a
            thousand times as strong if that has a smaller error on held-out samples.
        positions: the number of output positions per sample that are rows of the problem; more if a layer would have
            fewer than eight rows per feature. A layer uses the same positions in all samples, so that the result does
            not depend on how the data are split into batches or over ranks. For fewer than four rows per feature see
            :func:`fxprune.calibration.least_squares.shrunk_ridge`.
        most_features: layers with more features (input channels of a group x kernel) are left as they are.
        everywhere: whether to fit also layers whose input has all its channels but changed values; if not, only
            layers whose input was cut are fitted.
        hold_out: whether one sample in eight is held out; if not, overfitting to few samples goes unnoticed.

    Raises:
        RecoveryError: an argument is out of range.
    """

    ridge: float = 1e-3
    positions: int = 16
    most_features: int = 8192
    everywhere: bool = True
    hold_out: bool = True

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise RecoveryError(f"ridge must be at least 0, not {self.ridge!r}")
        check_count(RecoveryError, "positions", self.positions)
        check_count(RecoveryError, "most_features", self.most_features)

    def recover(self, work: Work) -> RecoveryRow:
        """Rewrite weights, biases and, where a layer has no bias, the running mean of the batch norm after it."""
        return _Pass(work, self.name, self, free_weight=True).run()


@recovery("bias")
@dataclass(frozen=True)
class FoldBias(Named):
    """Moves the mean of the removed channels into the bias of each layer that read them; weights do not change.

    The result is exact if every removed channel is constant. As in :class:`Reconstruct`, each layer is measured on the
    inputs that the pruned network, corrected up to there, computes for it, so that means do not drift.

    Args:
        positions: see :class:`Reconstruct`.

    Raises:
        RecoveryError: an argument is out of range.
    """

    positions: int = 64

    def __post_init__(self) -> None:
        check_count(RecoveryError, "positions", self.positions)

    def recover(self, work: Work) -> RecoveryRow:
        """Rewrite biases and, where a layer has none, the running mean of the batch norm after it."""
        return _Pass(work, self.name, Reconstruct(0.0, self.positions), free_weight=False).run()


class _Pass:
    """One walk through the original and the pruned network in parallel."""

    def __init__(self, work: Work, name: str, settings: Reconstruct, *, free_weight: bool) -> None:
        self.work = work
        self.name = name
        self.settings = settings
        self.free_weight = free_weight
        self.kept: list[str] = []
        found, self.left = find_layers(work.graph, work.pruned, work.masks, everywhere=settings.everywhere)
        self.layers = [layer for layer in found if self._takes(layer)]

    def _takes(self, layer: Layer) -> bool:
        features, most = layer.matrix.shape[2], self.settings.most_features
        if self.free_weight and features > most:
            self.left[layer.name] = f"{features} features are more than most_features={most}"
        elif not self.free_weight and layer.bias is None and layer.norm is None:
            self.left[layer.name] = "it has no bias and no batch norm that alone reads it"
        return layer.name not in self.left

    def run(self) -> RecoveryRow:
        batches = self.work.batches(self.name)
        targets = {reading.target for layer in self.layers for reading in layer.readings}
        original = Walk(self.work.network.module, self.work.graph.captured.graph, batches, targets)
        pruned = Walk(self.work.pruned, self.work.pruned.graphs["eval"], batches)
        layers = self.work.steps.counted(self.name, self.layers, len(self.layers))
        errors = [self._rewrite(layer, *self._rows(layer, original, pruned)) for layer in layers]
        before, after = (sum(e) / max(len(errors), 1) for e in zip(*errors, strict=True)) if errors else (0.0, 0.0)
        changed = tuple(layer.name for layer in self.layers if layer.name not in self.kept)
        return RecoveryRow(self.name, changed, self.left, self.work.seen, before, after, self._guards())

    def _guards(self) -> tuple[str, ...]:
        if not self.kept:
            return ()
        names = ", ".join(self.kept[:3]) + (", ..." if len(self.kept) > 3 else "")
        return (
            f"{len(self.kept)} of {len(self.layers)} layers keep their weights ({names}): fitted to the samples, "
            "they would be worse on those that are held out",
        )

    def _rows(self, layer: Layer, original: Walk, pruned: Walk) -> tuple[Moments, Rows | None, Rows]:
        """Moments of the rows that the layer is fitted to, those rows if they have bounds, and the held-out rows."""
        groups, targets, features = layer.matrix.shape
        fitted = Moments(groups, features, targets, layer.weight.device, f"the layer of {layer.name}")
        near, held = Rows(fitted), Rows(fitted)
        positions = enough_positions(self.settings.positions, features, self.work.seen)
        bounded = self.free_weight and layer.bounded and positions * self.work.seen * features < _MOST_ELEMENTS
        for parts, apart in self._pieces(layer, original, pruned, positions):
            held.add(*(_picked(part, apart) for part in parts))
            x, *rest = (_picked(part, ~apart) for part in parts)
            fitted.add(x, rest[0], rest[-1].reshape(-1))
            if bounded:
                near.add(x, *rest)
        add_over_ranks(fitted.sums())
        return fitted, near if bounded else None, held

    def _pieces(
        self, layer: Layer, original: Walk, pruned: Walk, positions: int
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Rows of some batches together: features, targets, their bounds and weights; and which rows are held out."""
        drawn: dict[tuple[int, ...], Tensor] = {}
        found: list[list[Tensor]] = []
        for batch in range(len(pruned)):
            alive = pruned.before(batch, layer.first.node)
            for reading in layer.readings:
                # For later readings of the same weight, the network is run ahead with its current weights.
                given = alive[reading.input] if reading is layer.first else pruned.peek(batch, reading.input)
                wanted = original.held(batch, reading.target)
                if (size := wanted.shape[1:]) not in drawn:
                    drawn[size] = reading.rows.draw(wanted, positions, self._generator(layer))
                x = reading.rows.features(given, len(layer.matrix), drawn[size])
                each = reading.rows.counts(x, len(self.work.held[batch]))
                if (weights := self.work.weights[batch]) is not None:
                    each = weights.times(each, reading.rows.positions(wanted), drawn[size])
                each = each.reshape(1, -1, 1)
                y = _wanted(layer, reading, wanted, pruned, batch, drawn[size])
                found.append([x, *y, each, self._rows_apart(batch, x.shape[1]).to(x.device)[None]])
            if sum(piece[0].numel() for piece in found) > _ELEMENTS_TOGETHER or batch == len(pruned) - 1:
                rows = [piece[0].shape[1] for piece in found]
                *parts, apart = (_together(one, rows) for one in zip(*found, strict=True))
                yield parts, apart[0]
                found = []

    def _rows_apart(self, batch: int, rows: int) -> Tensor:
        """A mask of the rows of held-out samples; rows come sample by sample. All False if samples are mixed."""
        held = self.work.held[batch]
        if rows % len(held) or not self.settings.hold_out:
            return torch.zeros(rows, dtype=torch.bool)
        return held.repeat_interleave(rows // len(held))

    def _generator(self, layer: Layer) -> torch.Generator:
        """A generator with the same seed for every batch."""
        return torch.Generator().manual_seed((self.work.seed ^ name_seed(layer.name)) % (1 << 63))

    def _rewrite(self, layer: Layer, fitted: Moments, near: Rows | None, held: Rows) -> tuple[float, float]:
        """Write the solution into the pruned network; return the relative squared error before and after."""
        apart = _unreadable(layer).reshape(fitted.yy.shape)
        start = self._start(layer, fitted)

        def solved(ridge: float, rows: Rows | None = None, *, free_weight: bool = True) -> AffineMap:
            found = self._solved(layer, fitted, start, ridge, rows, free_weight)
            weight = torch.where(apart.unsqueeze(2), start.weight, found.weight)
            return AffineMap(weight, torch.where(apart, start.intercept, found.intercept))

        def errors(*found: AffineMap) -> list[float]:
            return self._errors(found, fitted, near, held, ~apart)

        fits: list[AffineMap] = []
        if self.free_weight:
            more = _RIDGES if self.work.holds_out and self.settings.hold_out else _RIDGES[:1]
            tried = [self.settings.ridge * times for times in more]
            fits = [solved(ridge) for ridge in tried]
            if near is not None:
                tries = errors(*fits)
                fits.insert(0, solved(tried[tries.index(min(tries))], near))
        mean = solved(self.settings.ridge, free_weight=False)
        before, *after, last = errors(start, *fits, mean)
        least = min(after, default=math.inf)
        # Rounding does not count as a rise.
        most = before * (1 + 1e-9) + 1e-12
        if least <= most:
            _write(layer, fits[after.index(least)])
            return before, least
        if self.free_weight or last > most:
            self.kept.append(layer.name)
        if last <= most:
            _write(layer, mean)
        return before, min(before, last)

    def _errors(
        self, found: Sequence[AffineMap], fitted: Moments, near: Rows | None, held: Rows, counted: Tensor
    ) -> list[float]:
        """The relative squared errors of solutions on the held-out rows, or on the fitted rows if none are held out."""
        for rows in (held, near):
            if rows is not None:
                spread, errors = rows.spread(), torch.stack([rows.error(solution) for solution in found])
                add_over_ranks([spread, errors])
                count, sums, squares = spread
                if count.any():
                    energy = (squares - sums.square() / count).clamp_min(0)
                    break
        else:
            errors = torch.stack([fitted.error(solution.weight, solution.intercept) for solution in found])
            energy = fitted.centred()[2]
        whole = float(energy[counted].sum()) or 1.0
        return [float(error[counted].sum()) / whole for error in errors]

    def _start(self, layer: Layer, fitted: Moments) -> AffineMap:
        shape = fitted.yy.shape
        bias = torch.zeros_like(fitted.yy) if layer.bias is None else layer.bias.detach().reshape(shape)
        return AffineMap(layer.matrix.to(torch.float64), bias.to(torch.float64))

    def _solved(
        self, layer: Layer, fitted: Moments, start: AffineMap, ridge: float, rows: Rows | None, free_weight: bool
    ) -> AffineMap:
        return solve(
            fitted,
            start.weight,
            start.intercept,
            ridge=shrunk_ridge(ridge, fitted.centred()[0], fitted.rows) if free_weight else ridge,
            free_weight=free_weight,
            free_intercept=layer.bias is not None or layer.norm is not None,
            rows=rows,
        )


def _wanted(layer: Layer, reading: Reading, wanted: Tensor, pruned: Walk, batch: int, places: Tensor) -> list[Tensor]:
    """The layer's targets at these positions, ``(groups, rows, channels of a group)``, and their bounds."""
    groups, targets, _ = layer.matrix.shape
    y = reading.rows.targets(wanted, places)
    y = y if layer.kept is None else y[:, layer.kept.to(y.device)]
    scale, shift = torch.ones(1, y.shape[1], device=y.device), torch.zeros(1, 1, device=y.device)
    flat = torch.zeros_like(scale, dtype=torch.bool)
    if layer.norm is not None:
        scale, shift = layer.norm.scale[None], layer.norm.shift[None]
        flat = _flat(layer.norm)[None]
        scale = torch.where(flat, 1.0, scale)
    if reading.other is not None:
        shift = shift + reading.rows.targets(pruned.peek(batch, reading.other), places).double()
        y = (y - shift) / scale
    ends = [(bound - shift) / scale for bound in layer.bounds]
    low, high = torch.where(scale > 0, ends[0], ends[1]), torch.where(scale > 0, ends[1], ends[0])
    low, high = low.masked_fill(flat, -math.inf), high.masked_fill(flat, math.inf)
    return [part.reshape(-1, groups, targets).transpose(0, 1) for part in (y, low, high)]


def _together(pieces: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """Pieces with these numbers of rows, concatenated; the first piece if each has one row that stands for all."""
    return torch.cat(tuple(pieces), 1) if [piece.shape[1] for piece in pieces] == list(rows) else pieces[0]


def _picked(rows: Tensor, which: Tensor) -> Tensor:
    """Some rows of ``(groups, rows, ...)``; all of it if one row stands for all."""
    return rows if rows.shape[1] != len(which) else rows[:, which]


def _unreadable(layer: Layer) -> Tensor:
    """Output channels that a batch norm scales to almost zero, so that the sum after it determines no target."""
    if layer.first.other is None or layer.norm is None:
        groups, targets, _ = layer.matrix.shape
        return torch.zeros(groups * targets, dtype=torch.bool, device=layer.weight.device)
    return _flat(layer.norm)


def _flat(norm: Norm) -> Tensor:
    """Channels that a batch norm scales to almost zero."""
    scale = norm.scale.abs()
    return scale < 1e-4 * scale.max().clamp_min(1e-30)


def _write(layer: Layer, found: AffineMap) -> None:
    layer.weight.copy_(layer.first.rows.weight(found.weight, layer.weight.shape))
    intercept = found.intercept.reshape(-1)
    if layer.bias is not None:
        layer.bias.copy_(intercept)
    elif layer.norm is not None:
        layer.norm.mean.sub_(intercept)
