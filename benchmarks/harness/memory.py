"""Resident memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_memory() -> int:
    """The largest resident size so far, in bytes."""
    # A process inherits ru_maxrss from the one that started it, the high-water mark in /proc is its own.
    return _from_status("VmHWM") or _max_rss()


def resident_memory() -> int:
    """The resident size now, in bytes; the peak where the system does not tell."""
    return _from_status("VmRSS") or peak_memory()


def reset_peak_memory() -> bool:
    """Make :func:`peak_memory` start again from what is resident now; False where the system cannot."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def limit_memory(limit_bytes: int) -> None:
    """Let allocations beyond ``limit_bytes`` of data fail in this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _from_status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _max_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
