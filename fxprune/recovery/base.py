"""The interface of a recovery, and the pruned network that it works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.calibration import Calibration, held_out
from fxprune.calibration.balance import Weights
from fxprune.calibration.collecting import Collector, PrivateNetwork, addition_after, bytes_of_one, norm_after, parts_of
from fxprune.calibration.statistic import add_over_ranks
from fxprune.capture.samples import Sample
from fxprune.errors import RecoveryError
from fxprune.planning import Plan
from fxprune.recovery.walking import cone
from fxprune.reporting import RecoveryRow
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.rules.call import Call, parameter_name
from fxprune.util.progress import Steps
from fxprune.util.registry import Registry

if TYPE_CHECKING:
    from fxprune.recovery.layers import Layer

# The most bytes of values that are held at once; calibration data beyond that are not read.
_MOST_BYTES = 4 << 30


@dataclass(eq=False)
class Work:
    """One pruned network to be recovered."""

    graph: ChannelGraph  # the original's channel graph
    model: nn.Module  # the original; it is only read
    pruned: PrunedGraphModule  # the pruned network; its kept values are changed in place
    plan: Plan  # the plan that was applied
    calibration: Calibration | None = None  # the data; None if there are none
    steps: Steps = field(default_factory=lambda: Steps(False))  # shows progress
    seed: int = 0  # the seed of all random draws
    # The calibration inputs, one sample per batch; empty until :meth:`batches` has read them.
    samples: list[Sample] = field(default_factory=list)
    # For each batch, a mask of the rows that nothing is fitted to: the gain is measured on them.
    held: list[Tensor] = field(default_factory=list)
    weights: list[Weights | None] = field(default_factory=list)  # for each batch, how much each position counts
    holds_out: bool = False  # whether any row of any rank is held out

    @cached_property
    def network(self) -> PrivateNetwork:
        """The original, over its own copies of tensors."""
        return PrivateNetwork(self.graph, self.model)

    @cached_property
    def tables(self) -> list[str]:
        """The names of the tables that embeddings look numbers up in."""
        read = (parameter_name(c.arguments["weight"]) for c in self.graph.calls.values() if c.name == "embedding")
        return [name for name in dict.fromkeys(read) if name is not None]

    def predicts_tokens(self, shape: Sequence[int]) -> bool:
        """Whether an output of this shape, (samples, tokens, classes), has a class for each row of a table of tokens.

        Such a table has more rows than columns. Only differences of these classes matter, so two outputs are compared
        by the divergence of their predictions.
        """
        sizes = (self.graph.shapes.get(name, ()) for name in self.tables)
        return len(shape) == 3 and any(len(size) == 2 and shape[-1] == size[0] > size[1] for size in sizes)

    @property
    def masks(self) -> Mapping[Channels, Mask]:
        """For each group, the mask of the channels that stay."""
        return self.plan.masks(self.graph)

    def batches(self, name: str) -> list[Sample]:
        """This rank's calibration inputs. Raises RecoveryError: there are none; CalibrationError: they do not fit."""
        if self.calibration is None:
            raise RecoveryError(
                f"recover={name!r} measures the network on data: pass calibration=, batches of what the model takes "
                '(a DataLoader or a list); recover="fuse" needs none'
            )
        if not self.samples:
            self._read(self.calibration)
        return self.samples

    def _read(self, calibration: Calibration) -> None:
        balance = Collector(self.graph, self.model, calibration, steps=self.steps, seed=self.seed).balance()
        for batch in calibration:
            for part in parts_of(calibration, batch, self.graph, self.network):
                self.samples.append(part.sample)
                self.held.append(held_out(part))
                self.weights.append(None if balance is None else balance.of(part))
            # Twice: for the original and for the pruned network.
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
        """The number of calibration samples that were read; 0 without calibration."""
        return 0 if self.calibration is None else self.calibration.seen


@runtime_checkable
class Recovery(Protocol):
    """Changes kept values of a pruned network to bring its outputs back to the original's."""

    @property
    def name(self) -> str:
        """The name by which users choose it and which the report shows."""
        ...

    def recover(self, work: Work) -> RecoveryRow:
        """Change ``work.pruned`` in place, in eval mode and without gradients; return a row of the report."""
        ...


def sum_after(
    layer: Layer,
    calls: Mapping[fx.Node, Call],
    nodes: Mapping[str, fx.Node],
    layers: set[fx.Node],
    ranks: Mapping[fx.Node, int],
) -> Layer:
    """The layer, with the sum that it feeds as its target if the other summand is known when the layer is rewritten.

    In the pruned network the other summand already differs from the original's; a layer fitted to the sum corrects
    that. The summand is known if it is computed before the layer, or by ops that include no layer to be rewritten. A
    layer whose weight is read at several places is returned unchanged. ``calls`` are the original's; ``nodes`` (by
    name), ``layers`` and ``ranks`` (positions in the graph) are the pruned network's.
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
