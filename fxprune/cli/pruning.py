"""``fxprune compile``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.options import (
    RECOVERIES,
    Allow,
    AsJson,
    InputSize,
    Model,
    OtherSize,
    Verbose,
    Weights,
    complete,
    find,
    other_samples,
    plan_options,
    plan_parameters,
    say,
    show,
    show_json,
)

Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of images (in folders by class, or not), or of batches (.safetensors, .pt)."
    ),
]
Recover = Annotated[
    list[str] | None,
    typer.Option(
        metavar="|".join(("none", *RECOVERIES)),
        help="What is done after the proof; may be repeated.  [default: auto]",
        autocompletion=complete(RECOVERIES),
    ),
]


def compile_command(
    model: Model,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to save the pruned network to.")
    ] = None,
    calibration: Calibration = None,
    recover: Recover = None,
    input_size: InputSize = None,
    other_size: OtherSize = None,
    weights: Weights = None,
    allow: Allow = None,
    keep_class: Annotated[bool, typer.Option("--keep-class", help="Narrow a copy of the model itself.")] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the result, node by node.")] = True,
    verify_full: Annotated[bool, typer.Option(help="Prove it by whole networks in float64.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    **asked: Any,
) -> None:
    """Prune a network, prove the result, print a report and save it."""
    import fxprune
    from fxprune.reporting import render_report

    source = find(model, input_size, weights, asked["seed"], allow)
    pruned = fxprune.compile(
        source.model,
        source.sample,
        other_samples=other_samples(source, other_size),
        keep_class=keep_class,
        verify="full" if verify_full else verify,
        **plan_options(asked),
        **_with_data(calibration, recover, source.sample),
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
    say(f"saved to {output}" if output is not None else "not saved: give a folder with -o")


def _with_data(calibration: Path | None, recover: list[str] | None, sample: Any) -> dict[str, Any]:
    """The options of criteria and recovery that read data, where they were given."""
    from fxprune.cli.sources import batches_of

    given: dict[str, Any] = {} if calibration is None else {"calibration": batches_of(calibration, sample)}
    return given | ({"recover": None if recover == ["none"] else recover} if recover else {})


def _with_plan_options(signature: inspect.Signature) -> inspect.Signature:
    """The signature with a parameter for each option of a plan behind the model, in the place of ``**asked``."""
    model, *rest = (p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD)
    return signature.replace(parameters=[model, *plan_parameters(), *rest])


compile_command.__signature__ = _with_plan_options(  # type: ignore[attr-defined]
    inspect.signature(compile_command, eval_str=True)
)
