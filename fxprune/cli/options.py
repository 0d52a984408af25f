"""The options of the commands, and their printed output; completion in a shell imports no heavy library."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_args

import typer
from rich.console import Console, RenderableType

from fxprune.errors import OptionError
from fxprune.options import FormatName, FreeSize, Words, checked_seed, table
from fxprune.util.registry import registered_names

if TYPE_CHECKING:
    from fxprune.cli.sources import ModelAndSample

FORMATS, SIZES = get_args(FormatName), get_args(FreeSize)
RECOVERIES = registered_names("recovery", "recovery")
RUNTIMES = ("eager", "compile", "onnxruntime")


def complete(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A completion function for the given choices."""

    def completion(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return completion


# The stream for answers, while the output of models and libraries goes to standard error.
_ANSWERS: list[TextIO] = []


@contextmanager
def answers_alone() -> Iterator[None]:
    """Keep standard output for answers: output of a model's code, C code included, goes to standard error."""
    kept, answers = _own_output()
    _ANSWERS.append(answers)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _ANSWERS.pop()
        if kept is not None:
            answers.flush()
            os.dup2(kept, 1)
            answers.close()


def _own_output() -> tuple[int | None, TextIO]:
    """Standard output under another number, and its text; its own number leads to standard error from here on."""
    try:
        sys.stdout.flush()
        if sys.stdout.fileno() != 1 or sys.stderr.fileno() != 2:
            return None, sys.stdout
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # what stands for standard output is no file
        return None, sys.stdout
    return kept, open(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def say(text: str) -> None:
    """Print text as the answer."""
    from fxprune.util.tables import printable

    typer.echo(printable(text), file=_ANSWERS[-1] if _ANSWERS else None)


def show(renderable: RenderableType) -> None:
    """Print for people; if the output is not a terminal, without colours and without cutting names."""
    from fxprune.util.tables import Printable, plain_text

    if _ANSWERS and _ANSWERS[-1].isatty():
        Console(file=_ANSWERS[-1]).print(Printable(renderable))
    else:
        say(plain_text(renderable))


def answer(as_json: bool, data: Any, shown: str | RenderableType) -> None:
    """Print data as JSON, or what is shown to people."""
    if as_json:
        say(json.dumps(data, indent=2, default=str))
    elif isinstance(shown, str):
        say(shown)
    else:
        show(shown)


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, path/to/file.py:factory, or a saved folder."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved network.")]
InputSize = Annotated[
    list[str] | None,
    typer.Option(metavar="SIZES", help="Shape of an input: 1,3,224,224 or 1,128:int64; once for each positional one."),
]
OtherSize = Annotated[
    list[str] | None,
    typer.Option(metavar="HxW", help="Images that the result must take, too, such as 320x480; may be repeated."),
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="State dict to load: .safetensors, or of torch.save (no pickle is run)."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE:CLASS", help="A class that a saved network may import; may be repeated."),
]
Couplings = Annotated[str, typer.Option(metavar="keep|drop", help=table()["couplings"].metadata["words"].help)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every group and every pinned width.")]


_FEW = 6  # choices that the help can name


def plan_parameters() -> list[inspect.Parameter]:
    """A parameter, as typer reads it, for each option that a plan depends on."""
    found = []
    for name, row in table().items():
        words = row.metadata["words"]
        kind: Any = list[str] | None if words.many else type(row.default)
        usual = None if words.many else row.default
        completion = complete(words.choices) if words.choices else None
        named = "|".join(words.choices) if len(words.choices) <= _FEW else None
        shown = typer.Option(help=words.help, metavar=words.metavar or named or None, autocompletion=completion)
        place = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(name, place, default=usual, annotation=Annotated[kind, shown]))
    return found


def plan_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the given options. Raises OptionError: a value cannot be parsed."""
    asked = {name: row for name, row in table().items() if given.get(name) not in (None, [])}
    return {name: _read(name, given[name], row.metadata["words"]) for name, row in asked.items()}


def _read(name: str, given: Any, words: Words) -> Any:
    if words.many != "mapping":
        return given
    try:
        if len(given) == 1 and "=" not in given[0]:
            return words.read(given[0])
        if not all("=" in text for text in given):
            raise ValueError
        return {text.rpartition("=")[0]: words.read(text.rpartition("=")[2]) for text in given}
    except ValueError:
        flag = name.replace("_", "-")
        raise OptionError(f"--{flag} takes one value, or NAME=VALUE once or more, not {' '.join(given)!r}") from None


def find(
    model: str,
    input_size: list[str] | None,
    weights: Path | None = None,
    seed: int = 0,
    allow: list[str] | None = None,
    *,
    asked: bool = True,
) -> ModelAndSample:
    """The network that the arguments name, with its sample; see :func:`find_model`."""
    from fxprune.cli.sources import find_model, load_weights

    source = find_model(model, input_size or [], checked_seed(seed), allow=allow or (), asked=asked)
    if weights is not None:
        load_weights(source.model, weights)
    return source


def other_samples(source: ModelAndSample, sizes: list[str] | None) -> list[Any]:
    """For each HEIGHTxWIDTH, the sample with images of that size. Raises SampleError: not a size, or no images."""
    from fxprune.capture.samples import Sample
    from fxprune.errors import SampleError

    found = []
    for text in sizes or ():
        numbers = text.lower().split("x")
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
            raise SampleError(f"--other-size {text!r:.40}: give height and width in pixels, such as 320x480")
        found.append(Sample.from_input(source.sample).with_images_of(*map(int, numbers)))
    return found
