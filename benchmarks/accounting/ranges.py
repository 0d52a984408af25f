"""How many parameters a reduction of FLOPs can take with it: from the early layers alone, or from the late ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.accounting.meeting import meet
from benchmarks.accounting.rows import PublishedRow
from benchmarks.accounting.settling import Subject
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph

COLUMNS = ("row", "early layers first", "late layers first")


@dataclass(frozen=True)
class ByDepth:
    """A scorer that takes whole layers (all but one channel) from one end of the network."""

    late_first: bool

    @property
    def name(self) -> str:
        """What reports print."""
        return f"{'late' if self.late_first else 'early'} layers first"

    def score(self, group: Group, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> NDArray[np.float64]:
        """The place of the group in the network for every unit, shape ``(group.size,)``."""
        place = graph.groups.index(group)
        return np.full(group.size, float(-place if self.late_first else place))


def range_row(row: PublishedRow) -> dict[str, object]:
    """The fractions of parameters that go with the row's reduction of FLOPs, taken from either end; nothing is proven.

    Raises:
        FxpruneError: the reduction is out of reach.
    """
    images = torch.zeros(1, *PAPER_NETWORKS[row.network].shape)
    subject = Subject(paper_network(row.network, row.classes), images, "random", "none")
    removed = [meet(row, subject, ByDepth(late), verify=False).params_removed for late in (False, True)]
    return dict(zip(COLUMNS, (row.name, *(f"{share:.2%}" for share in removed)), strict=True))
