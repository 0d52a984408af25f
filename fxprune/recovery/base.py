"""What a recovery is, and what it has to work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.calibration import Calibration, held_out
from fxprune.calibration.collecting import PrivateNetwork, addition_after, bytes_of_one, norm_after, parts_of
from fxprune.calibration.statistic import add_over_ranks
from fxprune.capture.samples import Sample
from fxprune.errors import RecoveryError
from fxprune.planning import Plan
from fxprune.recovery.walking import cone
from fxprune.reporting import RecoveryRow
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.rules.call import Call
from fxprune.util.progress import Steps
from fxprune.util.registry import Registry

if TYPE_CHECKING:
    from fxprune.recovery.layers import Layer

# Values of so many bytes are held at once; calibration beyond that is not looked at.
_MOST_BYTES = 4 << 30


@dataclass(eq=False)
class Work:
    """One pruned network to be recovered."""

    graph: ChannelGraph  # the original's channel graph
    model: nn.Module  # the original, which is only read
    pruned: PrunedGraphModule  # the pruned network; its kept values are changed in place
    plan: Plan  # what was cut
    calibration: Calibration | None = None  # the data; None where there are none
    steps: Steps = field(default_factory=lambda: Steps(False))  # shows progress
    seed: int = 0  # of the output positions that are drawn
    # The calibration's inputs, a batch each, once :meth:`batches` has read them.
    samples: list[Sample] = field(default_factory=list)
    # For each of them which rows nothing is fitted to, so that what is gained is measured on them.
    held: list[Tensor] = field(default_factory=list)
    holds_out: bool = False  # whether any row of any rank is held out

    @cached_property
    def network(self) -> PrivateNetwork:
        """The original, over tensors of its own."""
        return PrivateNetwork(self.graph, self.model)

    @property
    def masks(self) -> Mapping[Channels, Mask]:
        """Which channels of each group stay."""
        return self.plan.masks(self.graph)

    def batches(self, name: str) -> list[Sample]:
        """This rank's inputs of calibration. Raises RecoveryError: there are none; CalibrationError: none that fit."""
        if self.calibration is None:
            raise RecoveryError(
                f"recover={name!r} measures the network on data: pass calibration=, batches of what the model takes "
                '(a DataLoader or a list); recover="fuse" needs none'
            )
        if not self.samples:
            self._read(self.calibration)
        return self.samples

    def _read(self, calibration: Calibration) -> None:
        for batch in calibration:
            for part in parts_of(calibration, batch, self.graph, self.network):
                self.samples.append(part.sample)
                self.held.append(held_out(part))
            # The original and the pruned network.
            if calibration.seen * 2 * bytes_of_one(self.graph, batch) > _MOST_BYTES:
                break
        seen = torch.tensor([calibration.seen, sum(int(h.sum()) for h in self.held)], dtype=torch.float64)
        add_over_ranks([seen])
        calibration.seen, held = int(seen[0]), int(seen[1])
        if held in (0, calibration.seen):
            self.held = [torch.zeros_like(mask) for mask in self.held]
        self.holds_out = 0 < held < calibration.seen

    @property
    def seen(self) -> int:
        """How many samples the last look at the calibration saw."""
        return 0 if self.calibration is None else self.calibration.seen


@runtime_checkable
class Recovery(Protocol):
    """Changes kept values of a pruned network so that it does again what the original does."""

    @property
    def name(self) -> str:
        """The name it is chosen by, and that the report shows."""
        ...

    def recover(self, work: Work) -> RecoveryRow:
        """Change ``work.pruned`` in place, in eval mode and without gradients; say what was done."""
        ...


def sum_after(
    layer: Layer,
    calls: Mapping[fx.Node, Call],
    nodes: Mapping[str, fx.Node],
    layers: set[fx.Node],
    ranks: Mapping[fx.Node, int],
) -> Layer:
    """The layer with the sum that it goes into as its target, where the other summand is there when its turn comes.

    The other summand of the pruned network has gone wrong already; a layer that aims at the sum makes up for that. It
    has to be known when the layer is rewritten: made before, or by ops that no layer to be rewritten is among. A layer
    whose weight is read at several places stays as it is. ``calls`` are the original's; ``nodes`` (by name), ``layers``
    and ``ranks`` (places in the graph) the pruned network's.
    """
    if len(layer.readings) > 1:
        return layer
    reading = layer.first
    last = norm_after(reading.source, calls) if layer.norm is not None else reading.source
    found = None if last is None else addition_after(last, calls)
    other = nodes.get(found[1].name) if found is not None else None
    if found is None or other is None:
        return layer
    before = [node for node, rank in ranks.items() if rank < ranks[reading.node]]
    ahead = cone(other, before)
    if reading.node in ahead or ahead & layers:
        return layer
    return replace(layer, readings=(replace(reading, target=found[0], other=other),))


recovery: Registry[Recovery] = Registry("recovery", "fxprune.recovery", RecoveryError)
"""Registers a class of recoveries under the name by which users ask for it."""
