"""The application: its commands, its version, and how a mistake of the user's ends it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from fxprune.cli import inspecting, pruning
from fxprune.cli.options import answers_alone
from fxprune.errors import FxpruneError

USER_ERROR, INTERRUPTED = 2, 130
_HELP = """A structured-pruning compiler for PyTorch networks.

Exit codes: 0 done, 1 two plans differ (diff), 2 a mistake in the request, 130 interrupted. Files and folders are
written whole or not at all.
"""
# By verb the function, and an example for its help.
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "compile": (
        pruning.compile_command,
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
    """The command, with what a user can cause turned into a line and an exit code."""

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
    """One line, however many the message has."""
    Console(stderr=True, soft_wrap=True).print("error:", " ".join(message.split()), markup=False, highlight=False)


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
    # Handled by its callback.
    del version


_options.__doc__ = _HELP
for _name, (_command, _example) in _COMMANDS.items():
    app.command(_name, epilog=f"Example: fxprune {_example}")(_polite(_command))
