"""The versions that a result depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

__all__ = ["machine", "versions"]


def versions() -> dict[str, str]:
    """Versions of fxprune, torch and Python, by name."""
    try:
        own = importlib.metadata.version("fxprune")
    except importlib.metadata.PackageNotFoundError:
        own = "from source"
    return {"fxprune": own, "torch": str(torch.__version__), "python": platform.python_version()}


def machine() -> dict[str, str]:
    """What timings depend on: system, processor, cores and torch's threads."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count() or "unknown"),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }
