"""How much each position counts, so that a class of few positions is not lost.

A squared error over all pixels hardly sees a class that covers one pixel in a hundred. So errors are weighted by
position: each class of the network's outputs counts at least as if all classes were equally frequent. The classes are
those that the network itself predicts, so no labels are needed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.calibration.batches import Batch, checksums
from fxprune.calibration.rows import token_weights
from fxprune.calibration.statistic import add_over_ranks, least_over_ranks
from fxprune.capture.samples import IMAGE_DIMS

# The largest weight: more would rest on too few positions.
_MOST = 32.0
# Where no class that occurs has a larger weight, all positions count alike.
_EVEN = 2.0
# Frequencies are not known from fewer positions for each class.
_FEWEST_OF_A_CLASS = 32
# The most positions of a sample whose classes are remembered.
_MOST_POSITIONS = 1 << 12
_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@dataclass(frozen=True)
class Weights:
    """How much each position of some samples counts.

    Attributes:
        maps: for each output of the network, ``(samples, *positions of the output)``.
    """

    maps: tuple[Tensor, ...]

    def __getitem__(self, rows: Tensor) -> Weights:
        return Weights(tuple(one[rows.to(one.device)] for one in self.maps))

    def mirrored(self) -> Weights:
        """Those of mirrored images."""
        return Weights(tuple(one.flip(-1) if one.ndim > 2 else one for one in self.maps))

    @staticmethod
    def joined(parts: Sequence[Weights | None]) -> Weights | None:
        """The weights of several batches together; None if those of one are not known."""
        known = [part.maps for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        return Weights(tuple(torch.cat(some) for some in zip(*known, strict=True)))

    def over(self, sizes: Sequence[int]) -> Tensor:
        """The mean over the outputs, for positions of these sizes: ``(samples, *sizes)``."""
        return torch.stack([resized(one, sizes) for one in self.maps]).mean(0)

    def at(self, value: Tensor, channel_dim: int) -> Tensor | None:
        """A weight for each position of a value (samples, ...), in its shape with one channel; None if it does not come
        in these samples."""
        if value.ndim < 2 or len(value) != len(self.maps[0]):
            return None
        sizes = list(value.shape)
        del sizes[channel_dim]
        return self.over(sizes[1:]).to(value.device).unsqueeze(channel_dim)

    def times(self, each: Tensor, sizes: Sequence[int], places: Tensor) -> Tensor:
        """The weights ``each`` of rows, which come sample by sample at some places of a map of these sizes, times those
        of their positions; unchanged if the rows are others."""
        own = self.over(sizes).flatten(1) if sizes else self.over(()).unsqueeze(1)
        own = own.to(each.device)[:, places.to(each.device)].reshape(-1)
        return each * own if len(own) == len(each) else each


def position_weights(value: Tensor, dim: int, weights: Weights | None) -> Tensor | None:
    """How much each position of a value with channels in ``dim`` counts: by its class, and less for tokens far larger
    than others. None if all count alike."""
    own = None if weights is None else weights.at(value, dim)
    if value.ndim < 3 or dim != -1:
        return own
    each = token_weights(value.square().sum(-1), len(value)).unsqueeze(-1)
    each = each / each.mean()
    return each if own is None else own * each


def resized(one: Tensor, sizes: Sequence[int]) -> Tensor:
    """A map ``(samples, *positions)`` averaged to positions of other sizes; one mean for all if their dims differ.

    The tokens of a grid are one dim of positions:

    >>> resized(torch.arange(16.0).reshape(1, 4, 4), (4,))
    tensor([[ 2.5000,  4.5000, 10.5000, 12.5000]])
    """
    sizes = tuple(sizes)
    if one.shape[1:] == sizes:
        return one
    if len(sizes) == 1 and one.ndim == 3:
        step = math.isqrt(max(one[0].numel() // max(sizes[0], 1), 1))
        grid = tuple(size // step for size in one.shape[1:])
        if math.prod(grid) == sizes[0]:
            return resized(one, grid).flatten(1)
    if len(sizes) == one.ndim - 1 and len(sizes) in _POOLS:
        found: Tensor = _POOLS[len(sizes)](one.unsqueeze(1), sizes).squeeze(1)
        return found
    whole = one.reshape(len(one), -1).mean(1)
    return whole.reshape(-1, *(1,) * len(sizes)).expand(len(one), *sizes)


@dataclass(frozen=True)
class Balance:
    """The weights of all samples of the calibration.

    Attributes:
        classes: by the checksum of a sample, for each output the class of each position, and its probability.
        factors: for each output, the weight of each class.
    """

    classes: Mapping[int, Sequence[tuple[Tensor, Tensor]]]
    factors: Sequence[Tensor]

    def of(self, batch: Batch) -> Weights | None:
        """The weights of a batch; None if it was not counted."""
        found = [self.classes.get(check) for check in checksums(batch)]
        known = [one for one in found if one is not None]
        if len(known) < len(found) or len({tuple(kind.shape for kind, _ in one) for one in known}) > 1:
            return None
        maps = [[_weight(*one, f) for one, f in zip(row, self.factors, strict=True)] for row in known]
        return Weights(tuple(torch.stack(one) for one in zip(*maps, strict=True)))


def _weight(kind: Tensor, sure: Tensor, factor: Tensor) -> Tensor:
    return 1 + sure.float() * (factor[kind.long()] - 1)


class Census:
    """Counts the classes that a network predicts: how often, and where."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # for each output, the probability of each class, summed over positions
        self._sizes: set[tuple[int, ...]] = set()  # the numbers of classes
        self._classes: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def add(self, batch: Batch, output: Any) -> None:
        """Take in the outputs for one batch."""
        leaves = [
            leaf.detach()
            for leaf in floating_tensors(output)
            if leaf.ndim > 1 and len(leaf) == batch.size and leaf.numel()
        ]
        shares = [log_shares(leaf).exp() for leaf in leaves]
        self._sizes.add(tuple(share.shape[-1] for share in shares))
        if len(self._sizes) > 1:
            return
        sums = [share.flatten(0, -2).sum(0, dtype=torch.float64).cpu() for share in shares]
        self._sums = [one + other for one, other in zip(self._sums, sums, strict=True)] if self._sums else sums
        found = [_few(share).max(-1) for share in shares]
        for row, check in enumerate(checksums(batch)):
            self._classes[check] = [(one.indices[row].int().cpu(), one.values[row].half().cpu()) for one in found]

    def balance(self) -> Balance | None:
        """The weights; None if all positions of all outputs count alike, or if outputs of other sizes were seen."""
        key = zlib.crc32(str(sorted(self._sizes)).encode()) if len(self._sizes) == 1 else 0
        least, most = least_over_ranks(key), -least_over_ranks(-key)
        if not key or least < most:
            return None
        add_over_ranks(self._sums)
        factors = [_factors(sums) for sums in self._sums]
        return Balance(self._classes, factors) if any((factor > 1).any() for factor in factors) else None


def _factors(sums: Tensor) -> Tensor:
    """The weight of each class, from how often each is predicted: as if it had its equal share of the positions."""
    even = torch.ones(len(sums))
    if not float(sums.sum()) >= _FEWEST_OF_A_CLASS * len(sums):  # NaN is possible
        return even
    found = (sums.mean() / sums.clamp_min(1e-9)).clamp(1, _MOST).float()
    return found if float(found[sums >= 1].max()) > _EVEN else even


def floating_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def class_dim(output: Tensor) -> int:
    """The dim of the classes: the first after the samples, or the last of (samples, tokens, classes)."""
    return -1 if output.ndim == 3 else min(1, output.ndim - 1)


def log_shares(output: Tensor) -> Tensor:
    """The logarithms of the classes' probabilities, ``(samples, *positions, classes)``; a single channel is the logit
    of two classes."""
    values = output.movedim(class_dim(output), -1).float()
    values = F.pad(values, (1, 0)) if values.shape[-1] == 1 else values
    return values.log_softmax(-1)


def divergence(one: Tensor, other: Tensor, dim: int, each: Tensor | None) -> Tensor:
    """The mean divergence of the predictions from the original's; 0 for an output without classes."""
    if other.ndim < 2:
        return one.new_zeros(())
    found, wanted = log_shares(one), log_shares(other)
    errors = (wanted.exp() * (wanted - found)).sum(-1)
    return errors.mean() if each is None else (errors * each.squeeze(dim)).mean()


def difference(one: Tensor, other: Tensor, dim: int, each: Tensor | None) -> Tensor:
    """The mean squared difference."""
    return F.mse_loss(one, other) if each is None else ((one - other).square() * each).mean()


def spread(other: Tensor, dim: int, each: Tensor | None) -> Tensor:
    """The variance over all dims except that of channels."""
    others = [d for d in range(other.ndim) if d != dim % max(other.ndim, 1)]
    each = other.new_ones(()) if each is None else each / each.mean()
    return ((other - (other * each).mean(others, keepdim=True)).square() * each).mean()


def correlation(one: Tensor, other: Tensor) -> float:
    """Of two outputs over all entries; if they have positions, also of one and the mirrored other: the larger one."""
    both = [other, other.flip(-1)] if one.ndim in IMAGE_DIMS else [other]
    mean = one.mean(0)
    return max(float(F.cosine_similarity((one - mean).flatten(), (o - mean).flatten(), dim=0)) for o in both)


def _few(share: Tensor) -> Tensor:
    """The positions of a regular grid, if there are more than can be remembered."""
    dims = share.ndim - 2
    step = math.ceil((share[0].numel() / share.shape[-1] / _MOST_POSITIONS) ** (1 / max(dims, 1)))
    grid = [slice(None), *[slice(None, None, step)] * dims]
    return share[tuple(grid)]
