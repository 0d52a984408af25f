"""Arguments and options that several commands share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fxprune.model_sources import Source

__all__ = ["Allow", "AsJson", "Couplings", "Folder", "InputSize", "Model", "Seed", "Verbose", "Weights", "find"]

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, path/to/file.py:factory, or a saved folder."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved network.")]
InputSize = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input, such as 1,3,224,224 or 1,128:int64; once for each positional input."),
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


def find(
    model: str,
    input_size: list[str] | None,
    weights: Path | None = None,
    seed: int = 0,
    allow: list[str] | None = None,
) -> Source:
    """The network that the arguments stand for, with its sample."""
    from fxprune.model_sources import find_model, load_weights

    source = find_model(model, input_size or [], seed, allow=allow or ())
    if weights is not None:
        load_weights(source.model, weights)
    return source
