"""Ways to run a network: eager, ``torch.compile`` and onnxruntime."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from fxprune.exporting.formats import FORMATS, onnx_session
from fxprune.samples import Sample

__all__ = ["RUNTIMES", "Prepared", "missing"]

Prepared = Callable[[], object]


def _eager(network: nn.Module, sample: Sample) -> Prepared:
    return lambda: sample.call(network)


def _compiled(network: nn.Module, sample: Sample) -> Prepared:
    torch.compiler.reset()
    compiled = torch.compile(network)
    return lambda: sample.call(compiled)


def _onnxruntime(network: nn.Module, sample: Sample) -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        FORMATS["onnx"].write(copy.deepcopy(network), [sample], file)
        session = onnx_session(file, torch.get_num_threads())
    inputs = {
        argument.name: t.numpy(force=True) for argument, t in zip(session.get_inputs(), sample.tensors, strict=True)
    }
    return lambda: session.run(None, inputs)


RUNTIMES: Mapping[str, Callable[[nn.Module, Sample], Prepared]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
}


def missing(runtime: str) -> str:
    """Why a runtime cannot be used here; empty where it can."""
    needed = ("onnx", "onnxscript", "onnxruntime") if runtime == "onnxruntime" else ()
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install 'fxprune[onnx]'" if absent else ""
