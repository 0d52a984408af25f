"""``load``: the network back from its folder, without running anything that the folder brings along."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.fx import GraphModule

from fxprune.artefacts.building import build
from fxprune.artefacts.descriptions import Description
from fxprune.artefacts.folders import MANIFEST, SavedFolder, open_folder
from fxprune.artefacts.opaque import resolve_imports
from fxprune.artefacts.values import decode_sample
from fxprune.errors import ArtefactError, PlanError
from fxprune.planning.plan import Plan
from fxprune.reporting import Report

__all__ = ["load", "load_report"]


def load(path: str | os.PathLike[str], *, allow: Iterable[Any] = ()) -> GraphModule:
    """The network that :func:`fxprune.save` wrote; it trains, and :func:`fxprune.report` tells about it.

    No pickle is read and no code of the folder is run: the graph is built from data, and what it may call is looked up
    in a fixed list. A network with opaque modules needs their classes, which are imported only where named.

    Args:
        path: the folder.
        allow: import paths (``"package.module:Class"``) of classes and functions from outside torch that may be
            imported, or these themselves.

    Returns:
        The network; a ``torch.fx.GraphModule``, or of its own class where the original's forward is opaque.

    Raises:
        ArtefactError: the folder was not saved by fxprune, is incomplete or was changed, needs another torch, or needs
            a class that ``allow`` does not name; the message lists them.
    """
    with open_folder(Path(path)) as folder:
        for name in ("graph.json", "weights.safetensors"):
            if name not in folder.manifest["files"]:
                raise ArtefactError(f"{folder.path} is incomplete: its {MANIFEST} does not list {name}")
        try:
            return _load(folder, allow)
        except ArtefactError as error:
            hint = _version_hint(folder.manifest)
            raise ArtefactError(f"{folder.path} cannot be loaded: {error!s:.2000}{hint}") from error
        except Exception as error:  # what torch.fx does with data of the wrong form has no end of kinds
            raise ArtefactError(f"{folder.path} cannot be loaded: graph.json is malformed ({error!r:.200})") from error


def _load(folder: SavedFolder, allow: Iterable[Any]) -> GraphModule:
    data = folder.read_json("graph.json")
    description = Description.from_dict(data)
    found = resolve_imports(description.imports, allow)
    tensors = _read_tensors(folder, "weights.safetensors")
    if "constants.safetensors" in folder.manifest["files"]:
        tensors |= _read_tensors(folder, "constants.safetensors")
    network = build(description, tensors, found)
    about: dict[str, Any] = {"sample": decode_sample(data.get("sample"))}
    if "report.json" in folder.manifest["files"]:
        about["report"] = _read_report(folder)
    network.meta = {"fxprune": about}  # type: ignore[assignment]  # what is no GraphModule has no such attribute yet
    return network  # type: ignore[return-value]  # as the docstring says


def load_report(path: str | os.PathLike[str]) -> Report:
    """The report of a saved network alone, without building the network.

    Raises:
        ArtefactError: the folder was not saved by fxprune, is incomplete or was changed, or holds no report.
    """
    with open_folder(Path(path)) as folder:
        if "report.json" not in folder.manifest["files"]:
            raise ArtefactError(f"{folder.path} holds no report: the network was not made by fxprune.compile")
        return _read_report(folder)


def _read_report(folder: SavedFolder) -> Report:
    try:
        listed = "plan.json" in folder.manifest["files"]
        plan = Plan.from_json(folder.read_text("plan.json")) if listed else None
        return Report.from_dict(folder.read_json("report.json"), plan=plan)
    except ArtefactError:
        raise
    except PlanError as error:
        raise ArtefactError(f"plan.json: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"report.json is malformed: {error!r:.200}") from error


def _read_tensors(folder: SavedFolder, name: str) -> dict[str, torch.Tensor]:
    try:
        read = safetensors.torch.load_file(folder.location(name))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{name} is no valid safetensors file: {error}") from error
    # Memory of their own, as the file's need not be aligned as torch's is, and vector code may then round otherwise.
    return {key: tensor.clone() for key, tensor in read.items()}


def _version_hint(manifest: dict[str, Any]) -> str:
    versions = manifest.get("versions")
    saved = versions.get("torch") if isinstance(versions, dict) else None
    return f" (saved with torch {saved}, this is {torch.__version__})" if saved != str(torch.__version__) else ""
