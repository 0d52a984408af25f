"""How near a network's outputs are to the original's, on samples that no recovery is fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.calibration.collecting import PrivateNetwork
from fxprune.calibration.statistic import add_over_ranks
from fxprune.capture.samples import Sample
from fxprune.recovery.base import Work
from fxprune.recovery.walking import evaluating
from fxprune.reporting import FidelityRow

# More samples than these change no decision.
_MOST_SAMPLES = 256


class Yardstick:
    """The original's outputs on the samples that are held out (on all where none are), to compare others with.

    Args:
        work: the original and the data.
    """

    def __init__(self, work: Work) -> None:
        network = PrivateNetwork(work.graph, work.model)
        self._held_out = work.holds_out
        with torch.no_grad():
            self._wanted = [_run(network, sample, rows) for sample, rows in self._chosen(work)]

    def measure(self, network: nn.Module, called: str) -> FidelityRow:
        """Compare a network, in eval mode; ``called`` is what the report calls it."""
        sums = torch.zeros(6, dtype=torch.float64)
        odd = torch.zeros(1, dtype=torch.float64)
        with evaluating(network):
            for sample, rows, wanted in self._wanted:
                given = _rows_of(_leaves(_copied(sample).call(network)), rows)
                if [g.shape for g in given] != [w.shape for w in wanted]:
                    odd += 1
                    continue
                for one, other in zip(given, wanted, strict=True):
                    sums += _sums(one.double(), other.double())
        counts = (len(rows) if rows is not None else sample.batch_size or 1 for sample, rows, _ in self._wanted)
        samples = torch.tensor([sum(counts)], dtype=torch.float64)
        add_over_ranks([sums, odd, samples])
        error, energy, agreeing, decided, cosines, compared = sums.tolist()
        if odd or not energy > 0:
            return FidelityRow(called, int(samples), self._held_out)
        return FidelityRow(
            called,
            int(samples),
            self._held_out,
            (error / energy) ** 0.5,
            agreeing / decided if decided else None,
            cosines / compared if compared else None,
        )

    def _chosen(self, work: Work) -> Iterator[tuple[Sample, Tensor]]:
        left = _MOST_SAMPLES
        for sample, held in zip(work.samples, work.held, strict=True):
            rows = torch.nonzero(held).reshape(-1)[:left] if self._held_out else torch.arange(len(held))[:left]
            left -= len(rows)
            if len(rows):
                yield sample, rows


def _run(network: PrivateNetwork, sample: Sample, rows: Tensor) -> tuple[Sample, Tensor | None, list[Tensor]]:
    """Some rows of a sample, and what the network gives for them.

    Where it takes no other batch, the whole sample and the rows to look at in what it gives.
    """
    apart = sample.map(lambda tensor: tensor[rows.to(tensor.device)] if tensor.ndim else tensor)
    if (sample.batch_size or 1) > len(rows):
        try:
            return apart, None, _leaves(network.run(_copied(apart)))
        except Exception:  # the network is the user's own code, and may be written for one batch size
            return sample, rows, _rows_of(_leaves(network.run(_copied(sample))), rows)
    return sample, None, _leaves(network.run(_copied(sample)))


def _rows_of(leaves: list[Tensor], rows: Tensor | None) -> list[Tensor]:
    """The rows of the samples; of an output without them all."""
    if rows is None:
        return leaves
    return [leaf[rows.to(leaf.device)] if leaf.ndim and len(leaf) > int(rows[-1]) else leaf for leaf in leaves]


def _copied(sample: Sample) -> Sample:
    """A network may write to its input."""
    return sample.map(torch.clone)


def _leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _sums(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, energy, agreeing and all decisions, cosines and how many, on the CPU.

    Decisions are the largest entries along the classes: dim 1, of sequences (samples, tokens, classes) the last.
    """
    found = torch.zeros(6, dtype=torch.float64)
    found[0], found[1] = (given - wanted).square().sum(), wanted.square().sum()
    if given.ndim >= 2 and given.numel():
        dim = -1 if given.ndim == 3 else 1
        one, other = (value.movedim(dim, -1).flatten(0, -2) for value in (given, wanted))
        if one.shape[1] > 1:
            found[2], found[3] = (one.argmax(1) == other.argmax(1)).sum(), len(one)
            found[4], found[5] = nn.functional.cosine_similarity(one, other).sum(), len(one)
    return found
