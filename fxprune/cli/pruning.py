"""``fxprune compile``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.options import (
    BUDGETS,
    CRITERIA,
    RECOVERIES,
    Allow,
    AsJson,
    Couplings,
    InputSize,
    Model,
    OtherSize,
    Seed,
    Verbose,
    Weights,
    by_pattern,
    complete,
    find,
    other_samples,
    show,
    show_json,
)
from fxprune.errors import OptionError

__all__ = ["compile_command"]


Criterion = Annotated[
    str,
    typer.Option(
        help="How channels are ranked: auto, or one of `fxprune criteria`.",
        autocompletion=complete(("auto", *CRITERIA)),
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Module or parameter pattern whose output channels stay; may be repeated.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of batches (.safetensors, .pt) for criteria and recovery that read data."),
]
Recover = Annotated[
    list[str] | None,
    typer.Option(
        help="Recovery after pruning: auto (usual), none, batchnorm ...; repeatable.",
        autocompletion=complete(RECOVERIES),
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        help="What ratio is a fraction of: macs, params, channels, memory or latency.", autocompletion=complete(BUDGETS)
    ),
]


def compile_command(
    model: Model,
    ratio: Annotated[
        list[str],
        typer.Option(
            metavar="FRACTION|NAME=FRACTION",
            help="Fraction of the budget to remove, at least 0 and below 1; or, repeated, those of several budgets "
            "(macs=0.5) or of the channels of layers (layer1.*=0.2).",
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to save the pruned network to.")] = None,
    budget: Budget = "macs",
    criterion: Criterion = "auto",
    calibration: Calibration = None,
    recover: Recover = None,
    scope: Annotated[
        str, typer.Option(help="auto; global: rank all groups together; uniform: the same share; reconstruction.")
    ] = "auto",
    alike: Annotated[str, typer.Option(help="free, or equal: one width for a place of repeated blocks.")] = "free",
    residual: Annotated[str, typer.Option(help="auto; coupled; inner: groups across an add stay.")] = "auto",
    couplings: Couplings = "keep",
    exclude: Exclude = None,
    round_to: Annotated[
        list[str] | None, typer.Option(help="Keep widths a multiple of this: auto, 8, or PATTERN=8, repeated.")
    ] = None,
    min_channels: Annotated[
        list[str] | None, typer.Option(help="Least channels left in a group: 4, or PATTERN=4, repeated.")
    ] = None,
    max_ratio: Annotated[
        list[str] | None, typer.Option(help="Largest share removed from a group: 0.9, or PATTERN=0.9, repeated.")
    ] = None,
    input_size: InputSize = None,
    other_size: OtherSize = None,
    weights: Weights = None,
    allow: Allow = None,
    seed: Seed = 0,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the result, node by node.")] = True,
    verify_full: Annotated[bool, typer.Option(help="Prove it by whole networks in float64.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Prune a network, prove the result, print a report and save it."""
    import fxprune
    from fxprune.reporting import render_report

    source = find(model, input_size, weights, seed, allow)
    pruned = fxprune.compile(
        source.model,
        source.sample,
        by_pattern("ratio", ratio, float),
        budget=budget,
        criterion=criterion,
        scope=scope,
        alike=alike,
        residual=residual,
        couplings=couplings,
        exclude=exclude or (),
        round_to=by_pattern("round-to", round_to, lambda text: text if text == "auto" else int(text), "auto"),
        min_channels=by_pattern("min-channels", min_channels, int, 1),
        max_ratio=by_pattern("max-ratio", max_ratio, float),
        other_samples=other_samples(source, other_size),
        verify="full" if verify_full else verify,
        seed=seed,
        **_with_data(calibration, recover),
    )
    # The folder tells where the original came from, so that it can be made again and timed against.
    report = dataclasses.replace(fxprune.report(pruned), source=model)
    pruned.meta["fxprune"]["report"] = report
    if output is not None:
        fxprune.save(pruned, output)
    if as_json:
        show_json(report.as_dict())
        return
    show(render_report(report, verbose=verbose))
    typer.echo(f"saved to {output}" if output is not None else "not saved: give a folder with -o")


def _with_data(calibration: Path | None, recover: list[str] | None) -> dict[str, Any]:
    """The options of criteria and recovery that read data, where they were given."""
    import fxprune
    from fxprune.cli.sources import BatchFolder

    given: dict[str, Any] = {}
    if calibration is not None:
        given["calibration"] = BatchFolder(calibration)
    if recover:
        given["recover"] = None if recover == ["none"] else recover
    known = inspect.signature(fxprune.compile).parameters
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise OptionError(f"this version of fxprune has no option --{unknown}")
    return given
