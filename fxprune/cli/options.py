"""What options may be, for completion in a shell: written down, so that no heavy library is imported for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

from fxprune.util.registry import registered_names

if TYPE_CHECKING:
    from fxprune.cli.sources import Source

__all__ = [
    "BUDGETS",
    "CRITERIA",
    "FORMATS",
    "RECOVERIES",
    "RUNTIMES",
    "Allow",
    "AsJson",
    "Couplings",
    "Folder",
    "InputSize",
    "Model",
    "OtherSize",
    "Seed",
    "Verbose",
    "Weights",
    "by_pattern",
    "complete",
    "find",
    "other_samples",
    "show",
    "show_json",
]


BUDGETS = registered_names("cost", "budget")
CRITERIA = registered_names("criteria", "criterion")
FORMATS = ("pt2", "onnx", "source")
RECOVERIES = registered_names("recovery", "recovery")
RUNTIMES = ("eager", "compile", "onnxruntime")


def complete(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What a shell may complete a word to."""

    def completion(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return completion


def show(renderable: RenderableType) -> None:
    """Print for people; without colours and at 100 columns where the output is no terminal."""
    from fxprune.reporting import plain_text

    if sys.stdout.isatty():
        Console().print(renderable)
    else:
        typer.echo(plain_text(renderable))


def show_json(data: Any) -> None:
    """Print JSON."""
    typer.echo(json.dumps(data, indent=2, default=str))


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, path/to/file.py:factory, or a saved folder."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved network.")]
InputSize = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input, such as 1,3,224,224 or 1,128:int64; once for each positional input."),
]
OtherSize = Annotated[
    list[str] | None,
    typer.Option(help="Height and width of images that the result must take, too, such as 320x480; may be repeated."),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="State dict to load: .safetensors, or a file of torch.save (read without running pickle)."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="Import path of a class that a saved network with opaque modules needs; may be repeated."),
]
Couplings = Annotated[str, typer.Option(help="keep, or drop: readers of a stream select their own inputs.")]
Seed = Annotated[int, typer.Option(help="Of random weights, the sample and the criterion.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every group and every pinned width.")]


def by_pattern(option: str, texts: list[str] | None, read: Callable[[str], Any], usual: Any = None) -> Any:
    """The value of an option that is one value, or NAME=VALUE once or more; ``usual`` where it is not given.

    Raises:
        OptionError: it is neither.
    """
    from fxprune.errors import OptionError

    if not texts:
        return usual
    try:
        if len(texts) == 1 and "=" not in texts[0]:
            return read(texts[0])
        return {text.rpartition("=")[0]: read(text.rpartition("=")[2]) for text in texts}
    except ValueError:
        raise OptionError(f"--{option} takes one value, or NAME=VALUE once or more, not {' '.join(texts)!r}") from None


def find(
    model: str,
    input_size: list[str] | None,
    weights: Path | None = None,
    seed: int = 0,
    allow: list[str] | None = None,
) -> Source:
    """The network that the arguments stand for, with its sample."""
    from fxprune.cli.sources import find_model, load_weights

    source = find_model(model, input_size or [], seed, allow=allow or ())
    if weights is not None:
        load_weights(source.model, weights)
    return source


def other_samples(source: Source, sizes: list[str] | None) -> list[Any]:
    """The sample of a network with images of other sizes, each given as HEIGHTxWIDTH.

    Raises:
        SampleError: a size cannot be read, or there are no images.
    """
    from fxprune.capture.samples import Sample
    from fxprune.errors import SampleError

    found = []
    for text in sizes or ():
        numbers = text.lower().split("x")
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
            raise SampleError(f"--other-size {text!r:.40}: give height and width in pixels, such as 320x480")
        found.append(Sample.from_input(source.sample).with_images_of(*map(int, numbers)))
    return found
