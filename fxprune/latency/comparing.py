"""What was predicted of a network's latency, and beside it what is measured."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.copying import deep_copy
from fxprune.reporting import LatencyRow
from fxprune.samples import Sample
from fxprune.timing import measure_latency

__all__ = ["cloned", "compared"]

_SECONDS = 1.0


def compared(predicted: tuple[float, float], original: nn.Module, pruned: nn.Module, sample: Sample) -> LatencyRow:
    """Time copies of both networks in turns, in eval mode, with eager torch.

    Args:
        predicted: seconds before and after.
        original: the network before.
        pruned: the network after.
        sample: one call's arguments.
    """
    threads = torch.get_num_threads()
    try:
        before, after = (deep_copy(network, cloned).eval() for network in (original, pruned))
        batches = [sample.batch_size] if sample.batch_size else []
        (found,) = measure_latency(before, after, sample, runtimes=["eager"], batches=batches, seconds=_SECONDS)
    except Exception as error:  # copying runs the user's own code: anything may come out of it
        return LatencyRow(predicted, None, f"not measured ({type(error).__name__}: {error!s:.200})")
    if found.failure:
        return LatencyRow(predicted, None, f"not measured ({found.failure})")
    shown = f"eager, {threads} thread{'s' * (threads > 1)}, median of {found.calls} calls"
    return LatencyRow(predicted, (found.original, found.pruned), shown)


def cloned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy without history; that of a parameter is one."""
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
