"""Seconds before and after pruning by three runtimes at two batch sizes; all forms of a network run in turns."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import fxprune
from benchmarks.harness import Outcome, Record, Sweep
from benchmarks.networks import find_network
from benchmarks.tables import ResumableTable, as_text, markdown_table, write_page
from fxprune.capture.samples import Sample
from fxprune.cost.measuring import timed_alternately
from fxprune.saving.formats import FORMATS, onnx_session
from fxprune.saving.timing import RUNTIMES


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
        times = timed_alternately(calls, seconds)
    record(variants=" ".join(variants), threads=threads, calls=len(times[0]))
    record(**{f"{v}_ms": 1e3 * statistics.median(found) for v, found in zip(variants, times, strict=True)})


def _prepared(place: Place, runtime: str, images: torch.Tensor) -> Callable[[], object]:
    if runtime == "onnxruntime":
        session = onnx_session(place.onnx, torch.get_num_threads())
        inputs = {session.get_inputs()[0].name: images.numpy()}
        return lambda: session.run(None, inputs)
    return RUNTIMES[runtime](place.load(), Sample.from_input(images))


ORIGINAL = "original"


@dataclass(frozen=True)
class Place:
    """Where one network in one form lies: ``variant`` is "original", "latency" or a value for ``round_to``."""

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
        options: dict[str, Any] = (
            {"budget": "latency"}
            if variant == "latency"
            else {"round_to": variant if variant == "auto" else int(variant)}
        )
        network = fxprune.compile(network, sample, ratio, verify=False, **options).eval()
        report = fxprune.report(network)
        gain = report.macs_before / report.macs_after
        record(predicted=report.latency.predicted if report.latency else None)
        fxprune.save(network, place.folder / "network")
    place.folder.mkdir(parents=True, exist_ok=True)
    # The first must not have a batch of one, which the exporter would fix.
    FORMATS["onnx"].write(network, [Sample.from_input(x) for x in (sample.repeat(2, 1, 1, 1), sample)], place.onnx)
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


MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16", "deeplabv3_resnet50")
VARIANTS = ("auto", "1", "8", "16", "latency")
BATCHES = (1, 8)
_LIMIT_SECONDS = 3600

_NOTE = """What was measured: the time of a call of torchvision's networks with random weights, before and after global
magnitude pruning to half of the MACs; in rows called latency, to half of the time that `budget="latency"` predicts at
batch 1. All forms of a network run in turns in one process, with {threads} for each call and images of {size} x {size}
pixels.

To repeat it: `python -m benchmarks.latency`.

How to read it: a gain is the original's median time over the pruned network's, and `MACs` is the same for their MACs.
Columns name the runtime (eager, `torch.compile` with its default backend, onnxruntime on the CPU) and the batch size.
`round_to`: narrowed widths are a multiple of it. An empty cell was not measured. The times are in the CSV file.

Fewer MACs are less time only where MACs are what takes the time. Element-wise work, normalisation and memory traffic
shrink with the widths of the activations and not with their product, and depthwise convolutions are bound by memory.
Widths that are no multiple of the vector length waste part of each vector. At batch 1 the overhead of every call
weighs most."""


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(MODELS),
    variants: Annotated[str, typer.Option(help="Values for round_to, or latency, by commas.")] = ",".join(VARIANTS),
    runtimes: Annotated[str, typer.Option(help="Runtimes, separated by commas.")] = ",".join(RUNTIMES),
    ratio: Annotated[float, typer.Option(help="Fraction to remove.")] = 0.5,
    size: Annotated[int, typer.Option(help="Pixels along each side of an image.")] = 224,
    seconds: Annotated[float, typer.Option(help="How long the forms of a network are timed together, at least.")] = 4.0,
    threads: Annotated[int, typer.Option(help="Threads inside a call.")] = 1,
    prepare_only: Annotated[bool, typer.Option(help="Prune, export and compile, and time nothing.")] = False,
    time_only: Annotated[bool, typer.Option(help="Time what was prepared.")] = False,
    afresh: Annotated[bool, typer.Option(help="Forget the times measured so far.")] = False,
    work: Annotated[Path, typer.Option(help="Folder for what is prepared.")] = Path("build/latency"),
    out: Annotated[Path, typer.Option(help="Table to write or go on with; .md beside it.")] = Path(
        "benchmarks/results/latency.csv"
    ),
) -> None:
    """Prepare networks before and after, then time them; a sweep that was stopped goes on where it was."""
    networks, chosen, ways = models.split(","), variants.split(","), runtimes.split(",")
    common = {"work": str(work), "size": size, "threads": threads}
    if not time_only:
        _prepare(networks, chosen, ways, ratio, common, work)
    if prepare_only:
        return
    if afresh:
        out.unlink(missing_ok=True)
    table = ResumableTable(out, ["model", "variants", *(f"{v}_ms" for v in (ORIGINAL, *VARIANTS)), "calls", "threads"])
    ready = {f"{n}@{r}@{b}": _ready(work, n, chosen, r, b) for n in networks for r in ways for b in BATCHES}
    ready = {name: found for name, found in ready.items() if len(found) > 1}
    for name in [name for name, found in ready.items() if name in table.rows and _others(table.rows[name], found)]:
        del table.rows[name]
    arguments = {**common, "seconds": seconds, "forms": ready}
    Sweep(time_forms, lambda outcome: outcome.fields, _LIMIT_SECONDS, arguments).run(list(ready), table)
    note = _NOTE.format(threads=f"{threads} thread{'s' * (threads > 1)}", size=size)
    write_page(out.with_suffix(".md"), "Latency", note, _gains(table, work, networks, chosen, ways))


def _prepare(
    networks: list[str],
    variants: list[str],
    runtimes: list[str],
    ratio: float,
    common: Mapping[str, object],
    work: Path,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    table = ResumableTable(work / "prepared.csv", ["model", "macs_gain", "compiled", "predicted", "failure"])
    names = [f"{name}@{variant}" for name, variant in forms(networks, variants)]
    Sweep(prepare, _row, _LIMIT_SECONDS, {**common, "ratio": ratio}).run(names, table, again=True)
    if "compile" in runtimes:
        names = [f"{name}@{v}@{batch}" for name, v in forms(networks, variants) for batch in BATCHES]
        Sweep(compile_once, _row, _LIMIT_SECONDS, common).run(names, table, again=True)


def _row(outcome: Outcome) -> Mapping[str, object]:
    return {**outcome.fields, "failure": outcome.failure}


def _ready(work: Path, network: str, variants: list[str], runtime: str, batch: int) -> list[str]:
    """The forms of a network that are prepared for a runtime."""
    table = ResumableTable(work / "prepared.csv", ["model", "macs_gain", "compiled", "predicted", "failure"])
    found = [v for v in (ORIGINAL, *variants) if Place(work, network, v).about]
    if runtime != "compile":
        return found
    return [v for v in found if table.rows.get(f"{network}@{v}@{batch}", {}).get("compiled")]


def _others(row: Mapping[str, str], variants: list[str]) -> bool:
    return row["variants"].split() != variants


def _gains(table: ResumableTable, work: Path, networks: list[str], variants: list[str], runtimes: list[str]) -> str:
    """A row for each network and variant: how many times fewer MACs, and how many times faster by each runtime."""
    places = [(runtime, batch) for runtime in runtimes for batch in BATCHES]
    rows = []
    for network in networks:
        for variant in variants:
            cells = [_gain(table.rows.get(f"{network}@{r}@{b}", {}), variant) for r, b in places]
            macs = Place(work, network, variant).about.get("macs_gain")
            rows.append([network, variant, "" if macs is None else f"{macs:.2f}", *cells])
    return markdown_table(["network", "round_to", "MACs", *(f"{runtime} {batch}" for runtime, batch in places)], rows)


def _gain(row: Mapping[str, str], variant: str) -> str:
    before, after = row.get(f"{ORIGINAL}_ms", ""), row.get(f"{variant}_ms", "")
    return as_text(f"{float(before) / float(after):.2f}") if before and after else ""


if __name__ == "__main__":
    typer.run(main)
