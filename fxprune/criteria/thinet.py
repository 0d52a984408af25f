"""ThiNet: removes channels in the order that changes the next layer's outputs least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.analysis.groups import Group, Member
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.axes.expressions import Product
from fxprune.calibration import Observation, Seen, Sums, TapFinder
from fxprune.criteria.base import criterion
from fxprune.criteria.rows import settled
from fxprune.errors import CriterionError, check_count
from fxprune.rules.call import Call
from fxprune.util.progress import name_seed
from fxprune.util.registry import Named

Parts = Callable[[Tensor], Tensor]


@criterion("thinet")
@dataclass(frozen=True)
class ThiNet(Named):
    """Greedy reconstruction: always removes the channel that changes sampled outputs of the next layers least.

    Luo et al., 2017, arXiv 1707.06342, section 3.2: the squared error of the outputs at sampled entries; an entry is a
    pair of a position and an output channel. The same entries are used of every sample, so one matrix of products
    between channels is enough. A channel's score is the error after its removal, as a share of the outputs' energy,
    summed over the consumers. Consumers are linear layers and convolutions without groups; a group without any cannot
    be judged.

    Args:
        entries: the number of entries of each sample.
        seed: the seed that chooses them.

    Raises:
        CriterionError: ``entries`` is below 1.
    """

    entries: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(CriterionError, "entries", self.entries)

    def observe(self, group: Group, finder: TapFinder, tensors: Mapping[str, Tensor]) -> Any:
        """The contribution of each channel to the sampled outputs of every consumer."""
        found = []
        for call, tap, weight in finder.consumers(group):
            member = next(m for m in group.members if m.tensor == weight and m.role == "in")
            parts = self._parts(call, tensors[weight].detach(), member, group, f"{group.name} {weight}")
            if parts is not None:
                found.append(Observation(tap, _Products(group.size, parts)))
        return found

    def score_observed(
        self, group: Group, observed: Any, tensors: Mapping[str, Tensor], graph: ChannelGraph
    ) -> FloatArray | None:
        """Scores of shape ``(group.size,)``; None if no consumer is understood."""
        products = [p for p in (s.relative() for s in observed) if p is not None]
        return greedy_errors(np.sum(products, axis=0)) if products else None

    def _parts(self, call: Call, weight: Tensor, member: Member, group: Group, key: str) -> Parts | None:
        # If channels are not single columns of the weight, a linear layer may have several columns per channel.
        draw = np.random.default_rng([self.seed % (1 << 64), name_seed(key)])
        outputs = torch.from_numpy(draw.integers(weight.shape[0], size=self.entries))
        places = draw.random((self.entries, 2))
        if call.name == "linear" and member.dim == 1 and weight.shape[1] % group.size == 0:
            if member.axis is not group.variable and not _is_flattened(member, group):
                return None
            return lambda maps: _linear_parts(maps, weight[outputs.to(weight.device)], places)
        if call.name == "conv2d" and member.axis is group.variable and call.number("groups") == 1:
            return lambda maps: _convolution_parts(maps, weight[outputs.to(weight.device)], places, _geometry(call))
        return None


def greedy_errors(products: FloatArray) -> FloatArray:
    """The error after each channel's removal, shape (channels,); channels are removed so that it grows least.

    ``products`` (channels, channels): sums over sampled outputs of products of two channels' contributions. Among
    equals, the highest index is removed first.
    """
    products = settled(products.reshape(-1)).reshape(products.shape)
    count = len(products)
    left = np.ones(count, dtype=np.bool_)
    cross = np.zeros(count)
    errors = np.zeros(count)
    error = highest = 0.0
    for step in range(count):
        growth = np.where(left, np.diag(products) + 2 * cross, np.inf)
        chosen = count - 1 - int(np.argmin(growth[::-1]))
        error += float(growth[chosen])
        # Contributions may cancel. To preserve the order, an error is at least that of the step before.
        highest = max(highest, error)
        errors[chosen] = highest + step * 1e-12
        left[chosen] = False
        cross += products[chosen]
    return errors


class _Products(Sums):
    """Sums of products of the contributions of two channels to sampled outputs."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__(products=(channels, channels))
        self._parts = parts

    def update(self, seen: Seen) -> None:
        parts = self._parts(seen.value).to(torch.float64)
        self.add("products", parts.T @ parts)

    def relative(self) -> FloatArray | None:
        products = self.array("products")
        energy = float(products.sum())
        return products / energy if energy > 0 else None


def _is_flattened(member: Member, group: Group) -> bool:
    """Whether a linear layer reads the positions of each channel consecutively, as after flattening maps."""
    return isinstance(member.axis, Product) and member.axis.factors[0] is group.variable


def _linear_parts(maps: Tensor, rows: Tensor, places: FloatArray) -> Tensor:
    """Contributions (samples x entries, channels) at sampled positions; ``rows`` is (entries, channels x elements)."""
    channels = maps.shape[1]
    elements = rows.shape[1] // channels
    values = maps.reshape(*maps.shape[:2], elements, -1)
    positions = torch.from_numpy((places[:, 0] * values.shape[3]).astype(np.int64)).to(values.device)
    found = torch.einsum("ncme,ecm->nec", values[..., positions], rows.reshape(len(rows), channels, elements))
    return found.reshape(-1, channels)


def _geometry(call: Call) -> tuple[Any, Any, Any]:
    return call.number("stride"), call.number("padding"), call.number("dilation")


def _convolution_parts(maps: Tensor, filters: Tensor, places: FloatArray, geometry: tuple[Any, Any, Any]) -> Tensor:
    """Contributions (samples x entries, channels) at sampled positions, one filter for each."""
    stride, padding, dilation = (_pair(v) for v in geometry)
    height, width = filters.shape[2:]
    padded = F.pad(maps, (padding[1], padding[1], padding[0], padding[0]))
    reach = dilation[0] * (height - 1) + 1, dilation[1] * (width - 1) + 1
    rows = (padded.shape[2] - reach[0]) // stride[0] + 1
    columns = (padded.shape[3] - reach[1]) // stride[1] + 1
    found = []
    for kernel, (y, x) in zip(filters, places, strict=True):
        top, left = int(y * rows) * stride[0], int(x * columns) * stride[1]
        patch = padded[:, :, top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]
        found.append((patch * kernel).sum((2, 3)))
    return torch.cat(found)


def _pair(value: Any) -> tuple[int, int]:
    # "same" keeps the size; "valid" adds no padding, and padding by an earlier op does not count.
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[-1])
    return (value, value) if isinstance(value, int) else (0, 0)
