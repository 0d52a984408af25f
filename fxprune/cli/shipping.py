"""Commands for saved networks: ``fxprune export`` and ``benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.options import FORMATS, RUNTIMES, SIZES, Allow, AsJson, Folder, complete, find, say, show, show_json

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
    if as_json:
        show_json(result.as_dict())
    else:
        say(str(result))


def benchmark(
    folder: Folder,
    original: Annotated[str | None, typer.Option(metavar="MODEL", help="The network it was made from.")] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(RUNTIMES), help="May be repeated; all by default.", autocompletion=complete(RUNTIMES)
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Batch size; may be repeated; 1 and 8 by default.")
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
    from fxprune.reporting.text import render_latencies
    from fxprune.saving.timing import RUNTIMES, measure_latency
    from fxprune.util.progress import Steps

    pruned = fxprune.load(folder, allow=allow or ()).eval()
    report = fxprune.report(pruned)
    if not (place := original or report.source):
        raise OptionError("the folder does not say what it was made from: name it with --original MODEL")
    source = find(place, None, None, 0, allow)
    if threads is not None:
        torch.set_num_threads(threads)
    sample = pruned.meta["fxprune"]["sample"] or source.sample
    chosen, sizes = runtime or list(RUNTIMES), batch or [1, 8]
    results = measure_latency(source.model, pruned, sample, runtimes=chosen, batches=sizes, seconds=seconds)
    labels = [f"{name}, batch {size}" for name in chosen for size in sizes]
    with Steps() as steps:
        measured: list[Any] = list(steps.counted("timing", results, len(labels), labels))
    if as_json:
        macs = {"before": report.macs_before, "after": report.macs_after}
        show_json({"original": place, "macs": macs, "latency": [latency.as_dict() for latency in measured]})
    else:
        show(render_latencies(measured, report))
