"""Every network of a library: pruned, proven, how far, how fast; the same for torch-pruning."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from benchmarks.compile_speed import Clock
from benchmarks.harness import Outcome, Record, Sweep, failure_text, follows_batch, output_shapes, train_one_step
from benchmarks.networks import Network, find_network, model_names, with_images_of
from benchmarks.rivals import Keep, kept_entries, number_entries, prune
from benchmarks.tables import REPORT_COLUMNS, Cells, ResumableTable, Row, markdown_table, report_fields, write_page
from fxprune.analysis.groups import PinnedWidth
from fxprune.capture.samples import Sample
from fxprune.errors import BudgetError, ProofError
from fxprune.proof import prove

CHANNEL_RATIO = 0.4
"""Removing this share of every group leaves 0.6 * 0.6 = 0.36 of a layer whose inputs and outputs are both free."""

_ENDS = ("the network's input", "the network's output")

Kept = Mapping[str, tuple[torch.Tensor | None, ...]]


def layer_weights(graph: fxprune.ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights with an input and an output width, those whose widths are all pinned included."""
    names = {member.tensor for group in graph.groups for member in group.members}
    names |= {pinned.tensor for pinned in graph.pinned}
    parameters = graph.captured.parameters
    return {name: graph.shapes[name] for name in names & parameters if len(graph.shapes[name]) >= 2}


def inner_weights(graph: fxprune.ChannelGraph) -> dict[str, tuple[int, ...]]:
    """The same without the layers that read the network's input or write its output, which must keep a width.

    Where a part of the network is opaque, its borders are such ends for what lies inside, so there all layers count.
    """
    if graph.opaque:
        return layer_weights(graph)
    ends = {pinned.tensor for pinned in graph.pinned if pinned.reason.endswith(_ENDS)}
    return {name: shape for name, shape in layer_weights(graph).items() if name not in ends}


def share_left(weights: Mapping[str, tuple[int, ...]], keep: Kept) -> float:
    """The share of the elements of ``weights`` that ``keep`` leaves."""
    left = sum(math.prod(sizes_left(shape, keep[name])) for name, shape in weights.items())
    return left / sum(math.prod(shape) for shape in weights.values())


def sizes_left(shape: tuple[int, ...], kept: tuple[torch.Tensor | None, ...]) -> list[int]:
    """What is left of each dim."""
    return [size if index is None else len(index) for size, index in zip(shape, kept, strict=True)]


def shares_left(graph: fxprune.ChannelGraph, keep: Kept) -> dict[str, float]:
    """``share_left`` of the inner layers, and ``share_left_all`` of all."""
    inner, whole = inner_weights(graph), layer_weights(graph)
    return {"share_left": share_left(inner or whole, keep), "share_left_all": share_left(whole, keep)}


def shares_left_by_uniform_plan(model: nn.Module, sample: Any) -> dict[str, float]:
    """What stays when ``CHANNEL_RATIO`` of every group that is not pinned goes."""
    plan = fxprune.plan(model, sample, CHANNEL_RATIO, budget="channels", scope="uniform")
    return shares_left(fxprune.analyze(model, sample), plan.keep)


THEIR_COLUMNS = """
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


COLUMNS = ["model", "pruned", "equal", *REPORT_COLUMNS, "share_left", "share_left_all", "in_the_way", "other_batch"]
COLUMNS += ["parameters_trained", "seconds", "peak_mib", "failure"]


def cover(record: Record, library: str, model: str, ratio: float, meta: bool, image_size: int) -> None:
    """One row: pruned at ``ratio`` of MACs (or as far as one can get), proven and trained a step unless on ``meta``."""
    network = find_network(library, model, meta=meta)
    if image_size:
        network = with_images_of(network, image_size)
    record(asked=ratio)
    pruned = _compiled(record, network, ratio)
    record(pruned=True)
    if not meta:  # before the original runs, which may leave hooks on itself
        record(**shares_left_by_uniform_plan(network.model, network.sample))
    record(other_batch=follows_batch(network.model, pruned, network.sample))
    if not meta:
        record(parameters_trained=train_one_step(pruned, network.training_sample))


def _compiled(record: Record, network: Network, ratio: float) -> fx.GraphModule:
    try:
        return _proven(record, network, ratio)
    except BudgetError as error:
        if not error.reachable:
            raise
        record(in_the_way=", ".join(error.pinned))
        # Just below what the message calls reachable, whose digits are rounded.
        return _proven(record, network, math.floor(error.reachable * 1000) / 1000)


def _proven(record: Record, network: Network, ratio: float) -> fx.GraphModule:
    """Compile with the proof; where that fails, say so and go on with the unproven network."""
    try:
        pruned = fxprune.compile(network.model, network.sample, ratio)
    except ProofError as error:
        record(equal=f"no: {failure_text(error)}", failure=failure_text(error))
        pruned = fxprune.compile(network.model, network.sample, ratio, verify=False)
    report = fxprune.report(pruned)
    record(**{name: value for name, value in report_fields(report).items() if name != "asked"})
    if report.proof is not None:
        record(equal="vacuous" if report.proof.vacuous else "yes")
    return pruned


def cover_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    fields = outcome.fields
    other_batch = str(fields.get("other_batch", ""))
    failure = outcome.failure or (other_batch if other_batch.startswith("no") else "")
    measured = {"seconds": outcome.seconds, "peak_mib": round(outcome.peak_mib), "failure": failure}
    return {"pruned": False} | fields | measured


_IDEAL = (1 - CHANNEL_RATIO) ** 2
_PIN_COLUMNS = ("model", "share_left", "share_left_all", "weights", "shape", "above", "pinned dims", "why")

_PINS_NOTE = """What was measured: the pinned widths that keep the most weights when {channels:.0%} of every group that
is not pinned goes.

To repeat it: `python -m benchmarks.coverage --library {library} --pins 2 --models NAME,NAME`.

How to read it: `share_left_all` is the share of all layer weights that stays, `share_left` the same without the layers
at the network's input and output. `above`: by how much the named weights raise `share_left_all` above {ideal:.2f}.
Weights of one shape with the same pins are one row."""


def _costly_pins(library: str, model: str, count: int) -> Iterator[Cells]:
    network = find_network(library, model, meta=library == "timm")
    plan = fxprune.plan(network.model, network.sample, CHANNEL_RATIO, budget="channels", scope="uniform")
    graph = fxprune.analyze(network.model, network.sample)
    shapes = layer_weights(graph)
    total = sum(map(math.prod, shapes.values()))
    above: dict[tuple[str, str, str], float] = defaultdict(float)
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for tensor, shape in shapes.items():
        pinned = [p for p in graph.pinned if p.tensor == tensor]
        key = "x".join(map(str, shape)), ", ".join(f"dim {p.dim}" for p in pinned), _reasons(pinned)
        above[key] += (math.prod(sizes_left(shape, plan.keep[tensor])) - _IDEAL * math.prod(shape)) / total
        names[key].append(tensor)
    shares = [f"{share:.3f}" for share in shares_left(graph, plan.keep).values()]
    worst = sorted((key for key in above if key[1]), key=lambda key: -above[key])[:count]
    for shape_text, dims, why in worst:
        key = (shape_text, dims, why)
        more = f" and {len(names[key]) - 1} more" if len(names[key]) > 1 else ""
        yield (model, *shares, names[key][0] + more, shape_text, f"{above[key]:.3f}", dims, why)


def _reasons(pinned: list[PinnedWidth]) -> str:
    return "; ".join(dict.fromkeys(p.reason for p in pinned))


_RESULTS = Path("benchmarks/results")
_RIVAL = "torch-pruning"
_HIDDEN = ("macs_g", "parameters_m", "proof", "vacuous", "batches", "seconds")
_SHOWN = [name for name in COLUMNS if name not in _HIDDEN]

_NOTE = """What was measured: every network of the library, with random weights{where}, pruned and proven in a process
of its own, which is stopped after {limit:g} s.

To repeat it: `python -m benchmarks.coverage --library {library}`.

How to read it: `asked` and `macs_removed` are fractions of the multiply-accumulates of convolution, linear and matmul.
If the ratio cannot be reached, `in_the_way` names the pinned widths, and the network is pruned as far as possible.
`equal`: the proof passed; `proof_error`: its largest relative error, at `resolutions`. `share_left`: the share of
weights that stays when {channels:.0%} of every group that is not pinned goes: 0.36 if nothing is pinned, less if a
width is a product of two groups, such as heads and head_dim. Layers at the network's input and output, which must keep
a width, are counted in `share_left_all` only. `opaque`: operations that were not understood. `other_batch`: outputs of
the original's shapes at another batch size. `parameters_trained`: parameters with a finite gradient in one step of SGD.
`peak_mib`: largest resident size of the process, including the proof."""
_THEIR_NOTE = """torch-pruning by the recipe of its documentation, {channels:.0%} of the channels of every layer; its
result judged by the same proof: the kept entries of every tensor, then outputs against the original without the others.
`runs` is "outputs cut" where the network's own outputs, such as classes, were pruned."""


def main(
    library: Annotated[str, typer.Option(help="torchvision, timm or transformers.")] = "torchvision",
    against: Annotated[str, typer.Option(help=f'"{_RIVAL}" measures that library, too.')] = "",
    models: Annotated[str, typer.Option(help="Names, separated by commas; the whole library by default.")] = "",
    families: Annotated[
        bool, typer.Option("--families", help="The smallest model of each family only (timm).")
    ] = False,
    meta: Annotated[
        bool, typer.Option("--meta", help="On the meta device: by structure, without weights or proof.")
    ] = False,
    ratio: Annotated[float, typer.Option(help="Fraction of MACs to remove.")] = 0.5,
    image_size: Annotated[int, typer.Option(help="Smaller images, where a network takes them; 0: its own.")] = 0,
    limit_seconds: Annotated[float, typer.Option(help="Time that a network may take.")] = 120,
    memory_gib: Annotated[float | None, typer.Option(help="Memory that a network may allocate.")] = None,
    again: Annotated[bool, typer.Option(help="Repeat those that failed.")] = False,
    pins: Annotated[int, typer.Option(help="Instead: so many pinned widths of each network, the most costly.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = _RESULTS,
) -> None:
    """Sweep over a library; one that was stopped goes on where it was."""
    if against not in ("", _RIVAL):
        raise typer.BadParameter(f"the only library to compare with is {_RIVAL}")
    names = models.split(",") if models else model_names(library, families=families)
    stem = f"coverage_{library}" + "_families" * families + "_meta" * meta
    if pins:
        costly = [row for name in track(names) for row in _costly_pins(library, name, pins)]
        note = _PINS_NOTE.format(library=library, ideal=_IDEAL, channels=CHANNEL_RATIO)
        write_page(
            out / f"coverage_{library}_pins.md",
            f"Pinned widths of {library}",
            note,
            markdown_table(_PIN_COLUMNS, costly),
        )
        return
    table = ResumableTable(out / f"{stem}.csv", COLUMNS)
    arguments = {"library": library, "ratio": ratio, "meta": meta, "image_size": image_size}
    Sweep(cover, cover_row, limit_seconds, arguments, memory_gib).run(names, table, again=again)
    their_table = ResumableTable(out / f"{stem}_torch_pruning.csv", COLUMNS) if against else None
    if their_table is not None:
        call = {"library": library, "limit_seconds": limit_seconds, "image_size": image_size}
        # Judging takes about as long as pruning may.
        sweep = Sweep(cover_torch_pruning, their_row, 3 * limit_seconds, call, memory_gib)
        sweep.run(names, their_table, again=again)
    note = _NOTE.format(library=library, limit=limit_seconds, channels=CHANNEL_RATIO, where=_where(meta, image_size))
    write_page(out / f"{stem}.md", f"Coverage of {library}", note, *_sections(table, their_table))


def _where(meta: bool, image_size: int) -> str:
    pixels = f", on images of {image_size} pixels where it takes them (clips of half of that)" if image_size else ""
    return " on the meta device" * meta + pixels


def _sections(table: ResumableTable, their_table: ResumableTable | None) -> list[str]:
    rows = list(table.rows.values())
    sections = [summary(rows), table.markdown(_SHOWN)]
    if their_table is not None:
        note = _THEIR_NOTE.format(channels=CHANNEL_RATIO)
        sections += [f"## {_RIVAL}\n\n{note}", side_by_side(table, their_table), their_table.markdown()]
    return sections


def summary(rows: Sequence[Row]) -> str:
    """How many were pruned and proven, the median of the share left, and which networks keep more than 0.45."""
    pruned = sum(row["pruned"] == "yes" for row in rows)
    equal = sum(row["equal"] == "yes" for row in rows)
    shares = {row["model"]: float(row["share_left"]) for row in rows if row["share_left"]}
    text = f"{len(rows)} networks: {pruned} pruned, {equal} of them proven equal."
    if shares:
        above = [f"{name} ({share:.2f})" for name, share in shares.items() if share > 0.45]
        text += f" Median share left {median(shares.values()):.3f}; above 0.45: {', '.join(above) or 'none'}."
    return text


def side_by_side(table: ResumableTable, their_table: ResumableTable) -> str:
    """Both libraries in one table: pruned, equal, share left and seconds."""
    columns = ("model", "pruned", *(f"{name} ({_RIVAL})" for name in ("pruned", "runs")), "equal", f"equal ({_RIVAL})")
    columns += ("share_left", f"share_left ({_RIVAL})", "seconds", f"seconds ({_RIVAL})")
    empty = dict.fromkeys(their_table.columns, "")
    rows = []
    for name, row in table.rows.items():
        their = their_table.rows.get(name, empty)
        cells = [name, row["pruned"], their["pruned"], their["runs"], row["equal"], their["equal"]]
        rows.append([*cells, row["share_left"], their["share_left"], row["compile_s"], their["prune_s"]])
    return markdown_table(columns, rows)


if __name__ == "__main__":
    typer.run(main)
