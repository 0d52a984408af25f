"""What is timed: each network as it is and pruned in several ways, on disk so that timing need not wait for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from benchmarks.harness.processes import Record
from benchmarks.networks import find_network
from fxprune.capture.samples import Sample
from fxprune.saving.formats import FORMATS
from fxprune.saving.timing import RUNTIMES

__all__ = ["ORIGINAL", "Place", "compile_once", "prepare", "use_threads"]

ORIGINAL = "original"


@dataclass(frozen=True)
class Place:
    """Where one network in one form lies: ``variant`` is "original", "latency" or a number for ``round_to``."""

    work: Path
    network: str
    variant: str

    @property
    def folder(self) -> Path:
        """The folder of everything about it."""
        return self.work / self.network / self.variant

    @property
    def onnx(self) -> Path:
        """The exported network."""
        return self.folder / "network.onnx"

    @property
    def about(self) -> dict[str, Any]:
        """What :func:`prepare` wrote last; empty before."""
        file = self.folder / "about.json"
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return found

    def load(self) -> nn.Module:
        """The network in eval mode."""
        if self.variant == ORIGINAL:
            return find_network("torchvision", self.network).model.eval()
        return fxprune.load(self.folder / "network").eval()


def use_threads(threads: int, work: str) -> None:
    """Set torch's threads, and keep what the compiler makes in the folder."""
    torch.set_num_threads(threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(work).resolve() / "inductor")


def prepare(record: Record, model: str, work: str, ratio: float, size: int, threads: int) -> None:
    """Prune one network in one way, save and export it. ``model`` is NETWORK@VARIANT."""
    use_threads(threads, work)
    name, _, variant = model.partition("@")
    place, sample = Place(Path(work), name, variant), torch.randn(1, 3, size, size)
    network, gain = find_network("torchvision", name).model.eval(), 1.0
    if variant != ORIGINAL:
        options: dict[str, Any] = {"budget": "latency"} if variant == "latency" else {"round_to": int(variant)}
        network = fxprune.compile(network, sample, ratio, verify=False, **options).eval()
        report = fxprune.report(network)
        gain = report.macs_before / report.macs_after
        record(predicted=report.latency.predicted if report.latency else None)
        fxprune.save(network, place.folder / "network")
    place.folder.mkdir(parents=True, exist_ok=True)
    FORMATS["onnx"].write(network, Sample.from_input(sample.repeat(2, 1, 1, 1)), ("batch",), place.onnx)
    (place.folder / "about.json").write_text(json.dumps({"macs_gain": gain}), encoding="utf-8")
    record(macs_gain=gain)


def compile_once(record: Record, model: str, work: str, size: int, threads: int) -> None:
    """Let ``torch.compile`` fill its cache. ``model`` is NETWORK@VARIANT@BATCH."""
    use_threads(threads, work)
    name, variant, batch = model.split("@")
    network = Place(Path(work), name, variant).load()
    with torch.no_grad():
        RUNTIMES["compile"](network, Sample.from_input(torch.randn(int(batch), 3, size, size)))()
    record(compiled=True)


def forms(networks: list[str], variants: list[str]) -> Iterator[tuple[str, str]]:
    """Every network in every form, the original first."""
    for name in networks:
        for variant in (ORIGINAL, *variants):
            yield name, variant
