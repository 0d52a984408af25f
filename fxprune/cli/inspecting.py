"""All commands except ``fxprune compile``: they inspect, compare, export and time networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.options import (
    FORMATS,
    RUNTIMES,
    SIZES,
    Allow,
    AsJson,
    Couplings,
    Folder,
    InputSize,
    Model,
    Verbose,
    Weights,
    answer,
    complete,
    find,
)

DIFFERENT = 1
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write it as one HTML file instead; it needs no network.")
]
PlanPlace = Annotated[Path, typer.Argument(help="A plan.json, or the folder of a saved network.")]


def analyze(
    model: Model,
    input_size: InputSize = None,
    weights: Weights = None,
    allow: Allow = None,
    draw: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture too: .svg or .dot.")] = None,
    couplings: Couplings = "keep",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the channel groups of a network, what is pinned and why, and how much of it can shrink."""
    import fxprune
    from fxprune.reporting import graph_as_dict, render_graph
    from fxprune.util.writing import write_text

    source = find(model, input_size, weights, 0, allow)
    graph = fxprune.analyze(source.model, source.sample, couplings=couplings)  # type: ignore[arg-type]  # checked there
    if draw is not None:
        write_text(draw, graph.draw(draw.suffix.removeprefix(".")))
    answer(as_json, graph_as_dict(graph), render_graph(graph, verbose=verbose))


def explain(
    model: Model,
    first: Annotated[str, typer.Argument(metavar="A", help="Module or parameter; add :DIM for one dim.")],
    second: Annotated[str | None, typer.Argument(metavar="[B]", help="Another: why are the two tied?")] = None,
    input_size: InputSize = None,
    allow: Allow = None,
    couplings: Couplings = "keep",
    as_json: AsJson = False,
) -> None:
    """Say why two widths are tied or, with one name, why a width is pinned."""
    import fxprune

    source = find(model, input_size, None, 0, allow)
    graph = fxprune.analyze(source.model, source.sample, couplings=couplings)  # type: ignore[arg-type]  # checked there
    found = graph.explain(first, second)
    answer(as_json, {"first": first, "second": second, "answer": found}, found)


def report(
    folder: Folder,
    html: Html = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Print the report of a saved network."""
    from fxprune.reporting import render_report
    from fxprune.saving import load_report

    found = load_report(folder)
    if html is not None:
        found.save_html(html)
    answer(as_json, found.as_dict(), _written(html) or render_report(found, verbose=verbose))


def _written(html: Path | None) -> str:
    return "" if html is None else f"written to {html}"


def compare(
    a: Folder,
    b: Folder,
    html: Html = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show two saved networks beside one another: costs, distance from the originals, widths, settings."""
    from fxprune.saving import load_report

    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    found = load_report(a).compare(load_report(b), names)
    if html is not None:
        found.save_html(html)
    answer(as_json, found.as_dict(), _written(html) or found.render(verbose=verbose))


def criteria(as_json: AsJson = False) -> None:
    """List the criteria: whether they need data, how they rank channels, and their defaults."""
    from fxprune.criteria import criterion_by_name, known_criteria, needs_data
    from fxprune.util.tables import add_row, new_table

    rows = {}
    for name in known_criteria():
        made = criterion_by_name(name)
        about = " ".join((type(made).__doc__ or "").partition("\n\n")[0].split())
        rows[name] = {"needs_data": needs_data(made), "about": about, "defaults": repr(made)}
    table = new_table("criterion", ["needs data"], last="what it ranks by, and its defaults")
    for name, row in rows.items():
        add_row(table, name, "yes" if row["needs_data"] else "no", f"{row['about']} {row['defaults']}")
    answer(as_json, rows, table)


def diff(a: PlanPlace, b: PlanPlace, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show how two plans differ; the exit code is 1 if they do."""
    from fxprune.planning.composing import difference, read_plan
    from fxprune.reporting.text import render_difference

    found = difference(read_plan(a), read_plan(b))
    answer(as_json, found.as_dict(), render_difference(found, verbose=verbose))
    if found:
        raise typer.Exit(DIFFERENT)


Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="|".join(FORMATS),
        help="Of the file.",
        autocompletion=complete(FORMATS),
        show_default="by suffix",
    ),
]


def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; for source a folder.")],
    format: Format = None,  # noqa: A002  as in Python
    dynamic: Annotated[
        list[str] | None,
        typer.Option(metavar="|".join(SIZES), help="What may change between calls; all that can by default."),
    ] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write a saved network to a file of another format, and compare what it answers before saying so."""
    import fxprune

    chosen: Any = {"format": format, "dynamic": dynamic or None}
    result = fxprune.export(fxprune.load(folder, allow=allow or ()), output, **chosen)
    answer(as_json, result.as_dict(), str(result))


def benchmark(
    folder: Folder,
    original: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The network it was made from; needed if that is a file.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(RUNTIMES), help="May be repeated; all by default.", autocompletion=complete(RUNTIMES)
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Batch size; may be repeated; 1 and 8 by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads inside a call; as torch has them.")] = None,
    seconds: Annotated[float, typer.Option(help="How long each pair is timed.")] = 1.0,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Time a saved network beside the one it was made from."""
    import torch

    import fxprune
    from fxprune.errors import OptionError
    from fxprune.rewriting import carried
    from fxprune.saving.timing import RUNTIMES, measure_latency, render_latencies
    from fxprune.util.progress import Steps

    pruned = fxprune.load(folder, allow=allow or ()).eval()
    report = fxprune.report(pruned)
    if not (place := original or report.source):
        raise OptionError("the folder does not say what it was made from: name it with --original MODEL")
    source = find(place, None, None, 0, allow, asked=original is not None)
    if threads is not None:
        torch.set_num_threads(threads)
    sample = carried(pruned)["sample"] or source.sample
    chosen, sizes = runtime or list(RUNTIMES), batch or [1, 8]
    results = measure_latency(source.model, pruned, sample, runtimes=chosen, batches=sizes, seconds=seconds)
    labels = [f"{name}, batch {size}" for name in chosen for size in sizes]
    with Steps() as steps:
        measured: list[Any] = list(steps.counted("timing", results, len(labels), labels))
    macs = {"before": report.macs_before, "after": report.macs_after}
    data = {"original": place, "macs": macs, "latency": [latency.as_dict() for latency in measured]}
    answer(as_json, data, render_latencies(measured, report))
