"""The application: its commands, its version, and how it reports a user's mistake."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fxprune.cli import inspecting
from fxprune.cli.options import (
    RECOVERIES,
    Allow,
    AsJson,
    InputSize,
    Model,
    OtherSize,
    Verbose,
    Weights,
    answer,
    answers_alone,
    complete,
    find,
    other_samples,
    plan_options,
    plan_parameters,
    say,
)
from fxprune.errors import FxpruneError

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
    from fxprune.rewriting import carried

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
    # The folder records where the original came from, so that `benchmark` can create it again and time it.
    report = dataclasses.replace(fxprune.report(pruned), source=model)
    carried(pruned)["report"] = report
    if output is not None:
        fxprune.save(pruned, output)
    answer(as_json, report.as_dict(), render_report(report, verbose=verbose))
    if not as_json:
        say(f"saved to {output}" if output is not None else "not saved: give a folder with -o")


def _with_data(calibration: Path | None, recover: list[str] | None, sample: Any) -> dict[str, Any]:
    """The given options of criteria and recoveries that read data."""
    from fxprune.cli.sources import batches_of

    given: dict[str, Any] = {} if calibration is None else {"calibration": batches_of(calibration, sample)}
    return given | ({"recover": None if recover == ["none"] else recover} if recover else {})


def _with_plan_options(signature: inspect.Signature) -> inspect.Signature:
    """The signature with a parameter for each option of a plan after the model, instead of ``**asked``."""
    model, *rest = (p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD)
    return signature.replace(parameters=[model, *plan_parameters(), *rest])


compile_command.__signature__ = _with_plan_options(  # type: ignore[attr-defined]
    inspect.signature(compile_command, eval_str=True)
)


USER_ERROR, INTERRUPTED = 2, 130
_HELP = """A structured-pruning compiler for PyTorch networks.

Exit codes: 0 done, 1 two plans differ (diff), 2 a mistake in the request, 130 interrupted. Files and folders are
written whole or not at all.
"""
# By command: the function, and an example for its help.
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "compile": (
        compile_command,
        "compile torchvision:resnet50 --weights resnet50.pth --ratio 0.5 --calibration photos -o resnet50-pruned",
    ),
    "analyze": (inspecting.analyze, "analyze torchvision:resnet50 --draw groups.svg"),
    "explain": (inspecting.explain, "explain torchvision:resnet18 conv1 layer1.1.conv2"),
    "export": (inspecting.export, "export resnet50-pruned -o resnet50.onnx"),
    "report": (inspecting.report, "report resnet50-pruned --html report.html"),
    "benchmark": (inspecting.benchmark, "benchmark resnet50-pruned --runtime onnxruntime --batch 1"),
    "compare": (inspecting.compare, "compare resnet50-pruned resnet50-other --html both.html"),
    "criteria": (inspecting.criteria, "criteria"),
    "diff": (inspecting.diff, "diff resnet50-pruned other/plan.json"),
}

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2."""
    app()


def _polite(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with errors that a user can cause turned into one line and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with answers_alone():
                command(*args, **kwargs)
        except (FxpruneError, OSError) as error:
            _print_error(str(error))
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            _print_error("interrupted; nothing was left half written")
            raise typer.Exit(INTERRUPTED) from None

    return run


def _print_error(message: str) -> None:
    """Print an error as one line, even if its message has several."""
    from fxprune.util.tables import printable

    line = printable(" ".join(message.split()))
    Console(stderr=True, soft_wrap=True).print("error:", line, markup=False, highlight=False)


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
    # Its callback handles it.
    del version


_options.__doc__ = _HELP
for _name, (_command, _example) in _COMMANDS.items():
    app.command(_name, epilog=f"Example: fxprune {_example}")(_polite(_command))
