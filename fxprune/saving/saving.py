"""``save``: writes a network to a self-contained folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.capture.exported import unwrapped
from fxprune.errors import ArtefactError
from fxprune.reporting import Report, versions
from fxprune.rewriting import carried
from fxprune.saving.descriptions import Json, describe, named_tensors
from fxprune.saving.folders import replace_folder, write_json
from fxprune.saving.opaque import STATE_TENSOR
from fxprune.saving.source import model_source
from fxprune.saving.values import encode_sample
from fxprune.util.writing import checked_path


def save(pruned: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned network to a folder, completely or not at all; a network saved at ``path`` before is replaced.

    The folder holds ``model.py`` (generated code that imports only torch), ``weights.safetensors`` (its state dict),
    ``plan.json`` and ``report.json`` (if the network has them), ``graph.json`` and, for buffers outside the state
    dict, ``constants.safetensors`` (from which :func:`fxprune.load` builds the network), and ``manifest.json``.
    If the network has opaque modules, ``model.py`` also imports their classes, and ``graph.json`` lists them.

    Raises:
        ArtefactError: the network holds something that cannot be written, or ``path`` holds files of another origin.
        FileError: writing fails; the previous content of ``path`` is unchanged.
    """
    pruned = unwrapped(pruned)
    about, description, tensors, source = _described(pruned)
    constants = {
        entry["name"]: tensors[entry["name"]] for entry in description["tensors"] if entry["kind"] == "constant"
    }
    constants |= {name: tensor for name, tensor in tensors.items() if name.startswith(f"{STATE_TENSOR}.")}
    report: Report | None = about.get("report")

    def write(folder: Path) -> None:
        (folder / "model.py").write_text(source, encoding="utf-8")
        _write_tensors(folder / "weights.safetensors", pruned.state_dict())
        if constants:
            _write_tensors(folder / "constants.safetensors", constants)
        write_json(folder / "graph.json", {**description, "sample": encode_sample(about.get("sample"))})
        if report is not None:
            write_json(folder / "report.json", report.as_dict())
        if report is not None and report.plan is not None:
            (folder / "plan.json").write_text(report.plan.to_json(), encoding="utf-8")

    replace_folder(checked_path(path), write, {"versions": versions()})


def write_source(pruned: nn.Module, folder: Path) -> None:
    """Write only ``model.py`` and ``weights.safetensors`` into a folder. Raises ArtefactError: see :func:`save`."""
    (folder / "model.py").write_text(_described(pruned)[-1], encoding="utf-8")
    _write_tensors(folder / "weights.safetensors", pruned.state_dict())


def _described(pruned: nn.Module) -> tuple[dict[str, Any], Json, dict[str, torch.Tensor], str]:
    """A network's metadata, its description, every tensor by name, and its source."""
    about = carried(pruned)
    if not isinstance(pruned, GraphModule) and not about:
        raise ArtefactError(f"only the result of fxprune.compile can be saved, not a {type(pruned).__name__}")
    for name, _, tensor in named_tensors(pruned):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
            raise ArtefactError(f"{name} is a {kind}, no plain tensor: save the network before it is quantised")
    description, held = describe(pruned)
    tensors = {name: tensor for name, _, tensor in named_tensors(pruned)} | held
    report: Report | None = about.get("report")
    done = "saved by fxprune." if report is None else f"pruned by fxprune: {report.headline}."
    source = model_source(pruned, description, tensors, f"{description['class_name']}, {done}")
    return about, description, tensors, source


def _write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    seen: set[int] = set()
    flat: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        # The format cannot store ties, so every further name gets its own copy.
        flat[name] = values.clone() if values.data_ptr() in seen else values
        seen.add(values.data_ptr())
    # The writer would create a file that only its owner can read.
    file.touch()
    mode = file.stat().st_mode
    try:
        safetensors.torch.save_file(flat, file, metadata={"format": "pt"})
        file.chmod(mode)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ArtefactError(f"the tensors cannot be written as safetensors: {error}") from error
