"""An architecture that takes its widths as arguments, so that a narrower one can be built by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Sample = Callable[[int], Any]


@dataclass(frozen=True)
class Architecture:
    """A network and the widths that a reader of its source would call free.

    Attributes:
        name: how the test is called.
        build: makes the network of given widths.
        widths: full widths by the name of the argument of ``build``.
        groups: the group of each width by the same name: "tensor", or "tensor/2" for one of several in one dim. All
            groups of the network are listed.
        sample: arguments of the forward for a batch size.
        other: arguments of another length or resolution, where the network takes one.
        ratio: the fraction of MACs that the network is compiled at.
        trains: whether every parameter that is left has a gradient in training mode.
    """

    name: str
    build: Callable[..., nn.Module]
    widths: Mapping[str, int]
    groups: Mapping[str, str]
    sample: Sample
    other: Sample | None = None
    ratio: float = 0.5
    trains: bool = True
