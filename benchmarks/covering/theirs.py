"""One network, pruned by torch-pruning and judged by the same proof."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from benchmarks.checks.running import output_shapes
from benchmarks.covering.shares import CHANNEL_RATIO, shares_left
from benchmarks.harness.failures import failure_text
from benchmarks.harness.processes import Outcome, Record
from benchmarks.networks import Network, find_network, with_images_of
from benchmarks.rivals.torch_pruning_recipe import Keep, kept_entries, number_entries, prune
from benchmarks.speed.clock import Clock
from fxprune.capture.samples import Sample
from fxprune.proof import prove

COLUMNS = """
    model pruned runs equal macs_removed share_left share_left_all prune_s seconds peak_mib failure
""".split()


def cover_torch_pruning(record: Record, library: str, model: str, limit_seconds: float, image_size: int) -> None:
    """One row: ``CHANNEL_RATIO`` of the channels of every layer removed by the recipe of torch-pruning."""
    network = find_network(library, model)
    if image_size:
        network = with_images_of(network, image_size)
    cut = copy.deepcopy(network.model)
    clock = Clock(limit_seconds)
    clock.run(lambda: prune(cut, network.sample, CHANNEL_RATIO))
    record(pruned=not clock.failure, failure=clock.failure, prune_s=clock.median)
    if clock.failure:
        return
    sample = Sample.from_input(network.sample)
    record(runs=_runs(network.model, cut, sample))
    record(macs_removed=1 - _macs(cut, sample) / _macs(network.model, sample))
    _judge(record, network, sample)


def _runs(original: nn.Module, cut: nn.Module, sample: Sample) -> str:
    """ "yes", or "outputs cut" where it runs, but the network's own outputs are narrower."""
    return "yes" if output_shapes(cut, sample) == output_shapes(original, sample) else "outputs cut"


def _macs(model: nn.Module, sample: Sample) -> float:
    """Multiply-accumulates of one call, counted on the meta device, where fused attention is counted, too."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        sample.to_meta().call(copy.deepcopy(model).to("meta"))
    return float(counter.get_total_flops()) / 2


def _judge(record: Record, network: Network, sample: Sample) -> None:
    """Whether what it cut is the original without the removed entries, and how much it cut."""
    original = copy.deepcopy(network.model).double()
    sample = sample.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    graph = fxprune.analyze(original, sample)
    cut = copy.deepcopy(original)
    number_entries(cut)
    prune(cut, _example(sample), CHANNEL_RATIO)
    shapes = {name: tuple(t.shape) for name, t in (*original.named_parameters(), *original.named_buffers())}
    keep = kept_entries(cut, shapes)
    record(**shares_left(graph, keep))
    record(equal=_verdict(graph, original, cut, keep, sample))


def _example(sample: Sample) -> Any:
    """The sample in the form that torch-pruning takes."""
    return sample.kwargs or (sample.args[0] if len(sample.args) == 1 else sample.args)


def _verdict(graph: fxprune.ChannelGraph, original: nn.Module, cut: nn.Module, keep: Keep, sample: Sample) -> str:
    captured = graph.captured.module(original)
    for parameter in cut.parameters():
        parameter.grad = None
    try:
        prove(original, captured, cut, keep, (sample.args, sample.kwargs), crosses_norm=False)
    except Exception as error:  # the proof was made for another pass; whatever it raises is a verdict
        return f"no: {failure_text(error)}"
    return "yes"


def their_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    measured = {"seconds": outcome.seconds, "peak_mib": round(outcome.peak_mib), "failure": outcome.failure}
    return {"pruned": False, "runs": False} | outcome.fields | measured
