"""The command line."""

from fxprune.cli.application import app, main

__all__ = ["app", "main"]
