"""Peak memory of the pass without its proof, relative to the model's own."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fxprune
from benchmarks.harness.memory import peak_memory, reset_peak_memory, resident_memory
from benchmarks.harness.processes import Outcome, Record
from benchmarks.networks import find_network
from benchmarks.speed.warming import warm_up

COLUMNS = ("model", "model_mib", "process_mib", "process_share", "tensors_mib", "tensors_share", "failure")


def measure_memory(record: Record, library: str, model: str, ratio: float) -> None:
    """Compile twice: once to see the process grow, once to count tensor allocations."""
    network = find_network(library, model)
    warm_up()
    own = sum(t.numel() * t.element_size() for t in _distinct_tensors(network.model))
    record(model_mib=own / 2**20)

    def compile_it() -> object:
        return fxprune.compile(network.model, network.sample, ratio, verify=False)

    grown = process_growth(compile_it)
    record(process_mib=grown / 2**20, process_share=grown / own)
    allocated = tensor_peak(compile_it)
    record(tensors_mib=allocated / 2**20, tensors_share=allocated / own)


def process_growth(call: Callable[[], object]) -> int:
    """How far the resident size rises above where it is now while ``call`` runs, its result included, in bytes."""
    gc.collect()
    before = resident_memory()
    reset_peak_memory()
    result = call()
    peak = peak_memory()
    del result
    return max(0, peak - before)


def tensor_peak(call: Callable[[], object]) -> int:
    """The most bytes that tensors allocated during ``call`` hold at a time, its result included."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        result = call()
    del result
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes: list[tuple[int, int]] = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def _distinct_tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def memory_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    return outcome.fields | {"failure": outcome.failure}
