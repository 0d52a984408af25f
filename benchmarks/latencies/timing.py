"""One network in all its forms by one runtime at one batch size, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness.processes import Record
from benchmarks.latencies.variants import Place, use_threads
from fxprune.capture.samples import Sample
from fxprune.cost.latency.measuring import in_turns
from fxprune.saving.formats import onnx_session
from fxprune.saving.timing import RUNTIMES

__all__ = ["time_forms"]


def time_forms(
    record: Record, model: str, work: str, size: int, threads: int, seconds: float, forms: dict[str, list[str]]
) -> None:
    """``model`` is NETWORK@RUNTIME@BATCH; ``forms`` names the variants of each, the original among them.

    Records the median milliseconds of each variant.
    """
    use_threads(threads, work)
    name, runtime, batch = model.split("@")
    images = torch.randn(int(batch), 3, size, size)
    variants = forms[model]
    with torch.no_grad():
        calls = [_prepared(Place(Path(work), name, variant), runtime, images) for variant in variants]
        times = in_turns(calls, seconds)
    record(variants=" ".join(variants), threads=threads, calls=len(times[0]))
    record(**{f"{v}_ms": 1e3 * statistics.median(found) for v, found in zip(variants, times, strict=True)})


def _prepared(place: Place, runtime: str, images: torch.Tensor) -> Callable[[], object]:
    if runtime == "onnxruntime":
        session = onnx_session(place.onnx, torch.get_num_threads())
        inputs = {session.get_inputs()[0].name: images.numpy()}
        return lambda: session.run(None, inputs)
    return RUNTIMES[runtime](place.load(), Sample.from_input(images))
