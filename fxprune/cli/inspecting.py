"""Commands that look: ``fxprune analyze``, ``explain``, ``report``, ``compare``, ``criteria`` and ``diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.options import (
    Allow,
    AsJson,
    Couplings,
    Folder,
    InputSize,
    Model,
    Verbose,
    Weights,
    find,
    say,
    show,
    show_json,
)

DIFFERENT = 1
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
    if as_json:
        show_json(graph_as_dict(graph))
    else:
        show(render_graph(graph, verbose=verbose))


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
    answer = graph.explain(first, second)
    if as_json:
        show_json({"first": first, "second": second, "answer": answer})
    else:
        say(answer)


def report(
    folder: Folder,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as one HTML file instead; it needs no network.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Print the report of a saved network."""
    from fxprune.reporting import render_report
    from fxprune.saving import load_report

    found = load_report(folder)
    if html is not None:
        found.save_html(html)
    if as_json:
        show_json(found.as_dict())
    elif html is not None:
        say(f"written to {html}")
    else:
        show(render_report(found, verbose=verbose))


def compare(
    a: Folder,
    b: Folder,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as one HTML file instead; it needs no network.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show two saved networks beside one another: costs, distance from the originals, widths, settings."""
    from fxprune.saving import load_report

    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    found = load_report(a).compare(load_report(b), names)
    if html is not None:
        found.save_html(html)
    if as_json:
        show_json(found.as_dict())
    elif html is not None:
        say(f"written to {html}")
    else:
        show(found.render(verbose=verbose))


def criteria(as_json: AsJson = False) -> None:
    """List the criteria that rank channels: whether they need data, what they rank by, and their defaults."""
    from fxprune.criteria import criterion_by_name, known_criteria, needs_data
    from fxprune.util.tables import add_row, new_table

    rows = {}
    for name in known_criteria():
        made = criterion_by_name(name)
        about = " ".join((type(made).__doc__ or "").partition("\n\n")[0].split())
        rows[name] = {"needs_data": needs_data(made), "about": about, "defaults": repr(made)}
    if as_json:
        show_json(rows)
        return
    table = new_table("criterion", ["needs data"], last="what it ranks by, and its defaults")
    for name, row in rows.items():
        add_row(table, name, "yes" if row["needs_data"] else "no", f"{row['about']} {row['defaults']}")
    show(table)


def diff(a: PlanPlace, b: PlanPlace, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Tell two plans apart; exit code 1 where they differ."""
    from fxprune.planning.differences import difference, read_plan
    from fxprune.reporting.text import render_difference

    found = difference(read_plan(a), read_plan(b))
    if as_json:
        show_json(found.as_dict())
    else:
        show(render_difference(found, verbose=verbose))
    if found:
        raise typer.Exit(DIFFERENT)
