"""The command line: ``fxprune compile``, ``analyze``, ``explain`` and ``report``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

from fxprune.errors import FxpruneError

if TYPE_CHECKING:
    from fxprune.model_sources import Source

__all__ = ["app", "main"]

USER_ERROR = 2

app = typer.Typer(
    help="A structured-pruning compiler for PyTorch networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, path/to/file.py:factory, or a saved folder."),
]
InputSize = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input, such as 1,3,224,224 or 1,128:int64; once for each positional input."),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="State dict to load: .safetensors, or a file of torch.save (read without running pickle)."),
]
Seed = Annotated[int, typer.Option(help="Of random weights, the sample and the criterion.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every group and every pinned width.")]


def main() -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2."""
    try:
        app()
    except (FxpruneError, OSError) as error:
        print_error(error)
        sys.exit(USER_ERROR)


def print_error(error: BaseException) -> None:
    """One line, however many the message has."""
    Console(stderr=True, soft_wrap=True).print("error:", " ".join(str(error).split()), markup=False, highlight=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from fxprune.reporting import versions

        typer.echo(", ".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """A structured-pruning compiler for PyTorch networks."""
    # Handled by its callback.
    del version


@app.command("compile")
def compile_command(
    model: Model,
    ratio: Annotated[float, typer.Option(help="Fraction of the budget to remove, at least 0 and below 1.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to save the pruned network to.")] = None,
    budget: Annotated[str, typer.Option(help="What ratio is a fraction of: macs, params or channels.")] = "macs",
    criterion: Annotated[str, typer.Option(help="How channels are ranked, such as magnitude.")] = "magnitude",
    scope: Annotated[str, typer.Option(help="global: rank all groups together; uniform: the same share.")] = "global",
    residual: Annotated[str, typer.Option(help="coupled, or inner: groups across an add stay.")] = "coupled",
    couplings: Annotated[str, typer.Option(help="keep, or drop: readers of a stream select their inputs.")] = "keep",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Module or parameter pattern whose output channels stay; may be repeated.")
    ] = None,
    round_to: Annotated[int, typer.Option(help="Keep widths a multiple of this.")] = 1,
    min_channels: Annotated[int, typer.Option(help="Least channels left in a group.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="Largest share removed from one group.")] = 1.0,
    input_size: InputSize = None,
    weights: Weights = None,
    seed: Seed = 0,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the result.")] = True,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Prune a network, prove the result, print a report and save it."""
    import fxprune

    source = _find(model, input_size, weights, seed)
    pruned = fxprune.compile(
        source.model,
        source.sample,
        ratio,
        budget=budget,
        criterion=criterion,
        scope=scope,
        residual=residual,
        couplings=couplings,
        exclude=exclude or (),
        round_to=round_to,
        min_channels=min_channels,
        max_ratio=max_ratio,
        verify=verify,
        seed=seed,
    )
    if output is not None:
        fxprune.save(pruned, output)
    _print_report(fxprune.report(pruned), as_json, verbose)
    if not as_json:
        typer.echo(f"saved to {output}" if output is not None else "not saved: give a folder with -o")


@app.command()
def analyze(
    model: Model,
    input_size: InputSize = None,
    weights: Weights = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the channel groups of a network, what is pinned and why."""
    import fxprune
    from fxprune.reporting import graph_as_dict, render_graph

    source = _find(model, input_size, weights, 0)
    graph = fxprune.analyze(source.model, source.sample)
    if as_json:
        _print_json(graph_as_dict(graph))
    else:
        _print(render_graph(graph, verbose=verbose))


@app.command()
def explain(
    model: Model,
    first: Annotated[str, typer.Argument(metavar="A", help="Module or parameter; add :DIM for one dim.")],
    second: Annotated[str | None, typer.Argument(metavar="[B]", help="Another: why are the two tied?")] = None,
    input_size: InputSize = None,
    as_json: AsJson = False,
) -> None:
    """Say why two widths are tied or, with one name, why a width is pinned."""
    import fxprune

    source = _find(model, input_size, None, 0)
    answer = fxprune.analyze(source.model, source.sample).explain(first, second)
    if as_json:
        _print_json({"first": first, "second": second, "answer": answer})
    else:
        typer.echo(answer)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved network.")],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Print the report of a saved network."""
    from fxprune.artefacts import load_report

    _print_report(load_report(folder), as_json, verbose)


def _find(model: str, input_size: list[str] | None, weights: Path | None, seed: int) -> Source:
    from fxprune.model_sources import find_model, load_weights

    source = find_model(model, input_size or [], seed)
    if weights is not None:
        load_weights(source.model, weights)
    return source


def _print_report(result: Any, as_json: bool, verbose: bool) -> None:
    from fxprune.reporting import render_report

    if as_json:
        _print_json(result.as_dict())
    else:
        _print(render_report(result, verbose=verbose))


def _print(renderable: RenderableType) -> None:
    from fxprune.reporting import plain_text

    if sys.stdout.isatty():
        Console().print(renderable)
    else:
        typer.echo(plain_text(renderable))


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))
