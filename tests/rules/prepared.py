"""Networks of the corpus made ready: in float64, in evaluation mode, analysed once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.api import analyze
from tests.rules.cases import Case

BATCHES = (2, 5)


def by_name(case: Case) -> str:
    """The id of a parametrised test."""
    return case.name


def built(case: Case) -> nn.Module:
    """The network of a case; its vectors of parameters are positive, so that none hides what it scales."""
    torch.default_generator.manual_seed(1)
    net = case.build().double().eval()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return net


def sampled(case: Case, batch: int, resized: bool = False) -> tuple[Any, ...]:
    """Arguments in float64."""
    torch.default_generator.manual_seed(100 + batch)
    make = case.resized if resized else case.sample
    assert make is not None
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in make(batch))


@cache
def analysed(case: Case) -> tuple[nn.Module, ChannelGraph]:
    """The network of a case and its channel groups."""
    net = built(case)
    return net, analyze(net, sampled(case, BATCHES[0]))
