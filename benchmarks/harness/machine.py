"""What a measurement ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")


def describe_machine() -> str:
    """One sentence: processor, cores, threads, versions."""
    found = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return (
        f"Measured on {_processor()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}, "
        f"Python {platform.python_version()}, {', '.join(found)}."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
