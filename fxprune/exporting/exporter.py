"""``export``: a network to a file of another format, which is run and compared before it is announced."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.artefacts.folders import replace_folder
from fxprune.errors import ExportError, OptionError, SampleError
from fxprune.exporting.checking import Check, find_checks, worst_error
from fxprune.exporting.formats import FORMATS, Format
from fxprune.exporting.result import Exported
from fxprune.progress import Steps
from fxprune.reporting import versions
from fxprune.rewriting import PrunedGraphModule
from fxprune.samples import Sample

__all__ = ["FORMATS", "export"]


def export(
    pruned: nn.Module,
    path: str | os.PathLike[str],
    format: str = "pt2",  # noqa: A002  the public name says what it is
    sample_input: Any = None,
    *,
    progress: bool | None = None,
) -> Exported:
    """Write a network to a file of another format; the file is read again, run and compared with the network first.

    The network is exported as it is in eval mode; it is not changed. The batch size, and the resolution where the
    network takes another one, may change between calls of the file. Where the network has several graphs for different
    resolutions, "pt2" and "onnx" hold the one of the sample.

    Args:
        pruned: what :func:`fxprune.compile` or :func:`fxprune.load` returned, or any module with a ``sample_input``.
        path: the file, or for "source" the folder; what is there is replaced once the new one has been checked.
        format: "pt2" (``torch.export``), "onnx" (needs the ``onnx`` extra; run by onnxruntime) or "source" (a folder
            with ``model.py``, which needs torch alone, and ``weights.safetensors``).
        sample_input: one call's arguments as for :func:`fxprune.compile`; by default random values like the sample
            that the network was compiled with.
        progress: show what is being done; by default only on a terminal.

    Returns:
        What was written, which sizes may change, and the largest difference found.

    Raises:
        ExportError: torch cannot export the network, or the file does not equal it.
        SampleError: there is no sample.
        MissingDependencyError: the format needs a library that is not installed.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    chosen, target = FORMATS[format], Path(path)
    chosen.check()
    network = copy.deepcopy(pruned).eval()
    sample = _sample(pruned, network, sample_input)
    if chosen.one_graph and isinstance(network, PrunedGraphModule):
        network = network.for_sizes_of(*sample.args, **sample.kwargs)
    with Steps(progress) as steps:
        with steps("run the network"):
            checks = find_checks(network, sample)
        with _scratch(target) as file, steps(f"export to {format}"):
            result = _first_that_works(chosen, network, checks, file, (str(target), format))
            _put_in_place(file, target)
    return result


def _sample(pruned: nn.Module, network: nn.Module, sample_input: Any) -> Sample:
    given = sample_input if sample_input is not None else getattr(pruned, "meta", {}).get("fxprune", {}).get("sample")
    if given is None:
        raise SampleError("the network carries no sample: pass sample_input, one call's arguments")
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    if device.type == "meta":
        raise ExportError("the network is on the meta device and has no values: load weights first")
    return Sample.from_input(given).map(torch.Tensor.detach).with_values().map(lambda tensor: tensor.to(device))


def _first_that_works(
    chosen: Format, network: nn.Module, checks: Sequence[Check], file: Path, named: tuple[str, str]
) -> Exported:
    """Let as many sizes change as torch, the format and the network allow."""
    notes = [] if any(check.tells for check in checks) else ["its outputs are all zero, so that they tell little"]
    for free, fitting in _freedoms(checks):
        try:
            chosen.write(network, fitting[0].probe.sample, free, file)
            error = worst_error(chosen.open(file), fitting)
        except Exception as failure:  # exporters raise many types
            _remove(file)
            notes = [*notes, f"no change of {' and '.join(free)}: {failure!s:.200}"] if free else notes
            last = failure
            continue
        sizes = dict.fromkeys(size for c in fitting if (size := c.probe.batch_size) is not None)
        resolutions = dict.fromkeys(name for c in fitting for name in c.probe.resolutions)
        tolerance = max(check.tolerance for check in fitting)
        return Exported(*named, free, tuple(sizes), tuple(resolutions), error, tolerance, tuple(notes))
    raise ExportError(f"the network cannot be exported to {named[1]}: {last!s:.600}") from last


def _freedoms(checks: Sequence[Check]) -> Iterator[tuple[tuple[str, ...], list[Check]]]:
    """Sets of sizes that may change, the largest first, each with the checks that they allow."""
    batches = {check.probe.batch_size for check in checks}
    if any(check.probe.resized for check in checks):
        yield (("batch",) if len(batches) > 1 else ()) + ("resolution",), list(checks)
    plain = [check for check in checks if not check.probe.resized]
    if len(batches) > 1:
        yield ("batch",), plain
    yield (), plain[:1]


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A file name in a new folder beside the target."""
    target.resolve().parent.mkdir(parents=True, exist_ok=True)
    folder = target.resolve().parent / f".{target.name}.exporting-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(file: Path) -> None:
    for made in file.parent.iterdir():
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def _put_in_place(file: Path, target: Path) -> None:
    if file.is_dir():
        replace_folder(target, lambda folder: _move_all(file, folder), {"versions": versions()})
    else:
        # Weights beside the file come first, as the file names them.
        for made in sorted(file.parent.iterdir(), key=lambda made: made.name == file.name):
            made.replace(target.resolve().parent / made.name)


def _move_all(source: Path, target: Path) -> None:
    for made in source.iterdir():
        made.rename(target / made.name)
