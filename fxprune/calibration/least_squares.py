"""Linear least squares in closed form, from second moments that are streamed batch by batch.

Planning needs the cost of a channel's removal at the best linear reconstruction; recovery needs the reconstruction
itself. Both use only the moments of features ``x`` and targets ``y``, never the rows themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.calibration.statistic import add_over_ranks
from fxprune.errors import CalibrationError

_ROWS_WITHOUT_SHRINKAGE = 4
_ROWS_OF_A_FEATURE = 8
_TURNS = 3  # iterations for targets beyond a bound


class Moments:
    """Sums of products of rows of features (and a one for the intercept) and of targets, for ``groups`` problems.

    Attributes:
        xx: ``(groups, features + 1, features + 1)``; the last feature is the constant one.
        xy: ``(groups, features + 1, targets)``.
        yy: ``(groups, targets)``, sums of squares.
    """

    def __init__(
        self, groups: int, features: int, targets: int, device: torch.device | None = None, layer: str = "a layer"
    ) -> None:
        self._layer = layer
        kind = {"dtype": torch.float64, "device": device}
        self.xx = torch.zeros(groups, features + 1, features + 1, **kind)  # type: ignore[arg-type]
        self.xy = torch.zeros(groups, features + 1, targets, **kind)  # type: ignore[arg-type]
        self.yy = torch.zeros(groups, targets, **kind)  # type: ignore[arg-type]

    def add(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add rows, ``(groups, rows, features)`` and ``(groups, rows, targets)``, with weights ``(rows,)``."""
        self.xx += products(features, features, weights, self._layer)
        self.xy += products(features, targets, weights, self._layer)[:, :, :-1]
        squares = targets.to(torch.float64).square()
        self.yy += (squares if weights is None else squares * weights.unsqueeze(1)).sum(1)

    def sums(self) -> Iterable[Tensor]:
        """The accumulators, which are summed over batches and ranks."""
        return [self.xx, self.xy, self.yy]

    @property
    def rows(self) -> float:
        """The sum of the weights of all rows added so far."""
        return float(self.xx[0, -1, -1])

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """``xx`` (groups, features, features), ``xy`` and ``yy`` about the means, for a free intercept."""
        count = max(self.rows, 1.0)
        x, y = self.xx[:, :-1, -1], self.xy[:, -1]
        xx = self.xx[:, :-1, :-1] - x.unsqueeze(2) * x.unsqueeze(1) / count
        xy = self.xy[:, :-1] - x.unsqueeze(2) * y.unsqueeze(1) / count
        return xx, xy, (self.yy - y.square() / count).clamp_min(0)

    def error(self, weight: Tensor, intercept: Tensor) -> Tensor:
        """Squared residuals of ``x @ weight.mT + intercept``, summed over rows: ``(groups, targets)``."""
        whole = torch.cat([weight, intercept.unsqueeze(2)], dim=2).to(torch.float64)
        return (self.yy - 2 * (whole.mT * self.xy).sum(1) + ((whole @ self.xx) * whole).sum(2)).clamp_min(0)


def products(one: Tensor, other: Tensor, weights: Tensor | None = None, layer: str = "a layer") -> Tensor:
    """Sums over rows of products of two sets of features, each extended by a constant one, float64.

    The large product is taken about the means, where single precision is enough; the means are added afterwards.

    Args:
        one: ``(groups, rows, m)``.
        other: ``(groups, rows, n)``.
        weights: the weight of each row, ``(rows,)``; by default one.
        layer: the layer that reads the features, in words.

    Returns:
        ``(groups, m + 1, n + 1)``.

    Raises:
        CalibrationError: the sums are not finite.
    """
    each = None if weights is None or bool((weights == 1).all()) else weights.unsqueeze(1)
    count = float(one.shape[1] if each is None else each.sum(dtype=torch.float64))
    kind = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)

    def parted(rows: Tensor) -> tuple[Tensor, Tensor]:
        weighted = rows if each is None else rows * each.to(rows)
        mean = weighted.sum(1, keepdim=True, dtype=torch.float64) / (count or 1.0)
        return mean, rows.to(kind) - mean.to(kind)

    centred = [parted(one)]
    centred.append(centred[0] if other is one else parted(other))
    (_, left), (_, right) = centred
    left = left if each is None else left * each.to(kind)
    found = F.pad((left.mT @ right).to(torch.float64), (0, 1, 0, 1))
    ends = [F.pad(mean, (0, 1), value=1.0) for mean, _ in centred]
    found = found + count * ends[0].mT @ ends[1]
    if not bool(found.isfinite().all()):
        raise CalibrationError(
            f"with the calibration's inputs, {layer} reads NaN, infinity or values too large to be squared: scale the "
            f"inputs as in training, or compile in a type with a wider range than {one.dtype}"
        )
    return found


@dataclass(frozen=True)
class AffineMap:
    """The best linear map: ``weight`` (groups, targets, features) and ``intercept`` (groups, targets)."""

    weight: Tensor
    intercept: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Map rows ``(groups, rows, features)`` to ``(groups, rows, targets)``."""
        weight, intercept = self.weight.to(features), self.intercept.to(features)
        return torch.baddbmm(intercept.unsqueeze(1), features, weight.mT)


class Rows:
    """Rows of features and targets, with bounds beyond which all targets are equivalent.

    For example, a ReLU maps all values below zero to zero: if a row's target is beyond a bound, any value beyond it is
    as good. ``moments``: the moments of rows of the same kind.
    """

    def __init__(self, moments: Moments) -> None:
        self._like = moments
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, features: Tensor, targets: Tensor, low: Tensor, high: Tensor, weights: Tensor) -> None:
        """Add rows: ``(groups, rows, features)``, ``(groups, rows, targets)``, the targets' bounds and weights, which
        broadcast against them."""
        if features.shape[1]:
            self._parts.append((features, *(part.to(features) for part in (targets, low, high, weights))))

    def error(self, solution: AffineMap) -> Tensor:
        """The sum of squared differences within the bounds, ``(groups, targets)``."""
        total = torch.zeros_like(self._like.yy)
        for x, y, low, high, each in self._parts:
            total += ((solution(x).clamp(low, high) - y.clamp(low, high)).square() * each).sum(1)
        return total

    def spread(self) -> Tensor:
        """The number of rows, and the sums of their bounded targets and of the squares, ``(3, groups, targets)``."""
        total = torch.zeros_like(self._like.yy).expand(3, -1, -1).clone()
        for _, y, low, high, each in self._parts:
            inside = y.clamp(low, high)
            total += torch.stack(
                [(power * each).sum(1) for power in (torch.ones_like(inside), inside, inside.square())]
            )
        return total

    def towards(self, solution: AffineMap) -> Tensor:
        """The moments ``xy`` with targets beyond a bound replaced by the map's values, which stay beyond it."""
        total = torch.zeros_like(self._like.xy)
        for x, y, low, high, each in self._parts:
            given = solution(x)
            met = torch.where(y <= low, given.minimum(low), torch.where(y >= high, given.maximum(high), y)) * each
            total[:, :-1] += x.mT @ met
            total[:, -1] += met.sum(1)
        return total


def solve(
    moments: Moments,
    weight: Tensor,
    intercept: Tensor,
    *,
    ridge: float,
    free_weight: bool,
    free_intercept: bool,
    rows: Rows | None = None,
) -> AffineMap:
    """Minimise ``|y - x w' - b|^2 + r |w - weight|^2``: weights that the data do not determine stay as they were.

    Args:
        moments: the moments of features and targets.
        weight: the initial weights, ``(groups, targets, features)``.
        intercept: the initial intercepts, ``(groups, targets)``.
        ridge: r is this times the mean square of the features (about their means if the intercept is free), summed over
            rows.
        free_weight: whether the weights may change.
        free_intercept: whether the intercepts may change.
        rows: if targets have bounds, the rows of the moments: with free weights, targets beyond a bound are replaced by
            the current map's values there, repeatedly; further repetitions would change little.
    """
    weight, intercept = weight.to(torch.float64), intercept.to(torch.float64)
    count = max(moments.rows, 1.0)
    xx, means = moments.xx[:, :-1, :-1], moments.xx[:, :-1, -1:] / count
    if free_intercept:
        xx = xx - means @ means.mT * count
    inverted = inverse(xx, ridge) if free_weight else None

    def solved(xy: Tensor) -> AffineMap:
        given = xy[:, -1:] / count
        xy = xy[:, :-1] - means @ (given if free_intercept else intercept.unsqueeze(1)) * count
        found = weight if inverted is None else weight + (inverted @ (xy - xx @ weight.mT)).mT
        return AffineMap(found, given.squeeze(1) - (found @ means).squeeze(2) if free_intercept else intercept)

    found = solved(moments.xy)
    if rows is not None and free_weight:
        for _ in range(_TURNS):
            xy = rows.towards(found)
            add_over_ranks([xy])
            found = solved(xy)
    return found


def enough_positions(least: int, features: int, samples: float) -> int:
    """The number of positions to use of each sample: ``least``, or more to get eight rows for each feature."""
    return max(least, math.ceil(_ROWS_OF_A_FEATURE * features / max(samples, 1.0)))


def shrunk_ridge(ridge: float, xx: Tensor, rows: float) -> float:
    """The ridge for second moments ``(..., n, n)`` of ``rows`` rows; it is larger if they are few for the features.

    With less than four rows per feature, it is at least the oracle approximating shrinkage, the largest over all
    matrices (Chen et al., 2010, "Shrinkage algorithms for MMSE covariance estimation", equation 23). 0 stays 0.
    """
    size = xx.shape[-1]
    if not ridge or rows >= _ROWS_WITHOUT_SHRINKAGE * size:
        return ridge
    trace, squares = xx.diagonal(dim1=-2, dim2=-1).sum(-1), xx.square().sum((-2, -1))
    over = (rows + 1 - 2 / size) * (squares - trace.square() / size)
    share = (((1 - 2 / size) * squares + trace.square()) / over.clamp_min(1e-300)).clamp(0, 0.99)
    return max(ridge, float((share / (1 - share)).max()))


def inverse(xx: Tensor, ridge: float) -> Tensor:
    """The inverse of symmetric ``(..., n, n)`` plus ``ridge`` times the mean diagonal, or the pseudo-inverse."""
    size = xx.shape[-1]
    scale = xx.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(size, dtype=xx.dtype, device=xx.device)
    raised = xx + ridge * scale * eye
    factor, failed = torch.linalg.cholesky_ex(raised)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    # Because of rounding errors, a singular matrix may pass with tiny pivots.
    weak = diagonal.amin(-1) < 1e-7 * diagonal.amax(-1)
    if bool(failed.any()) or bool(weak.any()):
        pseudo: Tensor = torch.linalg.pinv(raised, rtol=1e-12, hermitian=True)
        return pseudo
    return torch.cholesky_inverse(factor)


class Elimination:
    """The error that removing features adds to a linear map when the others are fitted again, one removal at a time.

    It is the least error over all maps of the remaining features (LeCun et al., 1989; Hassibi et al., 1993, "optimal
    brain surgeon", for blocks of features): ``w_u (H_uu)^-1 w_u'`` summed over the targets, with H the inverse of the
    features' second moments. Both are updated after every removal.

    Args:
        xx: second moments of the features about their means, ``(features, features)``.
        weight: the map, ``(targets, features)``; targets whose errors count more are scaled up.
        blocks: the features of each channel, ``(channels, features of a channel)``.
        ridge: see :func:`inverse`.
    """

    def __init__(self, xx: Tensor, weight: Tensor, blocks: Tensor, ridge: float = 1e-3) -> None:
        self._inverse = inverse(xx.to(torch.float64), ridge)
        self._weight = weight.to(torch.float64).clone()
        self._blocks = blocks

    def costs(self) -> Tensor:
        """The error that removing each channel would add now, ``(channels,)``."""
        corners = self._inverse[self._blocks.unsqueeze(2), self._blocks.unsqueeze(1)]
        weights = self._weight[:, self._blocks].movedim(0, 2)
        found: Tensor = (weights * torch.linalg.solve(corners, weights)).sum((1, 2))
        return found

    def remove(self, channels: Sequence[int]) -> float:
        """Remove the features of some channels together, fit the others again, and return the added error."""
        block = self._blocks[list(channels)].reshape(-1)
        rows, weights = self._inverse[block], self._weight[:, block]
        solved = torch.linalg.solve(rows[:, block], torch.cat([rows, weights.T], dim=1))
        share, added = solved[:, : rows.shape[1]], float((weights.T * solved[:, rows.shape[1] :]).sum())
        self._weight -= weights @ share
        self._inverse -= rows.T @ share
        # Their own rows are zero up to rounding: ones on the diagonal keep the blocks invertible.
        self._weight[:, block] = 0
        self._inverse[block] = 0
        self._inverse[:, block] = 0
        self._inverse[block, block] = 1
        return max(added, 0.0)
