"""What commands print: tables or text for people, JSON where asked for."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console, RenderableType

__all__ = ["show", "show_json"]


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
