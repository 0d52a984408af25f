"""The segmentation networks of Xiu et al. 2022, of which no numeric row could be read, at half of their MACs."""

from __future__ import annotations

import time

import torch

import fxprune
from benchmarks.accounting.counting import MACS, count_flops, count_parameters
from benchmarks.accounting.settling import settle
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from fxprune.criteria import MultiSource

COLUMNS = ("network", "parameters", "MACs", "MACs removed", "parameters removed", "proof error", "seconds")
NETWORKS = {"U-Net": 2, "DABNet": 19, "DeepLabV3": 21}


def segmentation_row(name: str, *, ratio: float = 0.5, seed: int = 0) -> dict[str, object]:
    """Compile with the paper's criterion, sets of filters judged by the output, couplings kept, and prove the result.

    Raises:
        FxpruneError: the network cannot be pruned so far, or not proven.
    """
    started = time.perf_counter()
    model, shape = paper_network(name, NETWORKS[name], seed=seed), PAPER_NETWORKS[name].shape
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    settle(model, images, seed)
    pruned = fxprune.compile(model, images[:1], ratio, criterion=MultiSource(), calibration=[images], progress=False)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    macs, parameters = count_flops(model, shape, MACS), count_parameters(model)
    return {
        "network": name,
        "parameters": f"{parameters / 1e6:.2f} M",
        "MACs": f"{macs / 1e9:.3f} G at {shape[1]}x{shape[2]}",
        "MACs removed": f"{1 - count_flops(pruned, shape, MACS) / macs:.2%}",
        "parameters removed": f"{1 - count_parameters(pruned) / parameters:.2%}",
        "proof error": f"{proof.relative_error:.0e}",
        "seconds": f"{time.perf_counter() - started:.0f}",
    }
