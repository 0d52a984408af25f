"""The versions that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Versions of fxprune, torch and Python, by name."""
    try:
        own = importlib.metadata.version("fxprune")
    except importlib.metadata.PackageNotFoundError:
        own = "from source"
    return {"fxprune": own, "torch": str(torch.__version__), "python": platform.python_version()}
