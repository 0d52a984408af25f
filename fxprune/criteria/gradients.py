"""Statistics of gradients: how much the loss changes, to first order, with a channel or with a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

import torch
from torch import Tensor

from fxprune.criteria.features import flat
from fxprune.errors import CriterionError
from fxprune.statistics import Seen, Sums

__all__ = ["ChannelChanges", "GradientPowers", "check_over", "gradient_powers"]


def check_over(over: str) -> None:
    """Refuse what changes cannot be averaged over.

    Raises:
        CriterionError: it is neither "sample" nor "batch".
    """
    if over not in ("sample", "batch"):
        raise CriterionError(f'over must be "sample" or "batch", not {over!r}')


class _MeanPower(Sums):
    """The mean of ``|c|^p``, ``c`` being all that is seen of one sample, or the mean over the samples of one batch.

    Gradients of single samples do not cancel as those of all data do, which add up to nothing where training ended.

    Args:
        shape: of ``c``.
        over: "sample" or "batch".
        power: 1 or 2.
    """

    def __init__(self, shape: tuple[int, ...], over: str, power: int) -> None:
        super().__init__(total=shape, count=())
        self._over = over
        self._power = power
        self._open: Tensor | None = None
        self._number = self._run = -1
        self._samples = 0

    def gather(self, seen: Seen, rows: Tensor) -> None:
        """Take in rows of shape ``(samples, *shape)``; those of one sample or batch add up over all places."""
        number = seen.batch if self._over == "batch" else seen.run
        if number != self._number:
            self._close()
            self._number = number
        if seen.run != self._run:
            self._run = seen.run
            self._samples += seen.samples
        rows = rows.sum(0, keepdim=True) if self._over == "batch" else rows
        self._open = rows if self._open is None else self._open + rows

    def sums(self) -> Iterable[Tensor]:
        """Every accumulator."""
        self._close()
        return super().sums()

    def mean(self) -> Tensor:
        """The mean, of the given shape."""
        self._close()
        return self.held["total"] / max(float(self.held["count"]), 1.0)

    def _close(self) -> None:
        if self._open is None:
            return
        changes = self._open / self._samples if self._over == "batch" else self._open
        self.add("total", (changes.abs() if self._power == 1 else changes.square()).sum(0))
        self.add("count", float(len(changes)))
        self._open, self._samples = None, 0


class ChannelChanges(_MeanPower):
    """Of activation times gradient, summed over positions and over all places where the statistic is taken.

    That is the derivative of the loss by one factor that multiplies the channel at all these places.

    Args:
        units: how many channels there are.
        over, power: see above.
        mean: whether the mean over positions is taken instead of the sum.
    """

    needs = "gradient"

    def __init__(self, units: int, over: str, power: int, mean: bool = False) -> None:
        super().__init__((units,), over, power)
        self._mean = mean

    def update(self, seen: Seen) -> None:
        """Take in one batch at one place."""
        assert seen.gradient is not None
        products = flat(seen.value) * flat(seen.gradient)
        rows = (products.mean(2) if self._mean else products.sum(2)).to(torch.float64)
        if len(rows) != seen.samples:
            # The place does not tell samples apart: each has its share.
            rows = (rows.sum(0, keepdim=True) / seen.samples).expand(seen.samples, -1)
        self.gather(seen, rows)


class GradientPowers(_MeanPower):
    """Of the gradient of the loss by each weight; "sample" runs the network sample by sample."""

    def __init__(self, shape: tuple[int, ...], over: str, power: int) -> None:
        super().__init__(shape, over, power)
        self.needs = "sample gradient" if over == "sample" else "gradient"

    def update(self, seen: Seen) -> None:
        """Take in one batch or sample."""
        assert seen.gradient is not None
        self.gather(seen, seen.gradient.to(torch.float64).unsqueeze(0))


@cache
def gradient_powers(over: str, power: int) -> Callable[[tuple[int, ...]], GradientPowers]:
    """What makes :class:`GradientPowers` of a shape; the same object for the same arguments, so that groups share."""
    return partial(GradientPowers, over=over, power=power)
