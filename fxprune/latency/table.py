"""The table of this machine: seconds by call, kept in a file of the user's cache directory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fxprune.writing import write_text

__all__ = ["LatencyTable", "cache_directory", "conditions", "time_call"]

CACHE_VARIABLE = "FXPRUNE_CACHE"
_FEWEST_CALLS, _LEAST_SECONDS = 3, 0.008
_FORMAT = 1
Call = Callable[[], object]
Timer = Callable[[Call], float]


class LatencyTable:
    """Seconds of calls under one set of conditions.

    Args:
        conditions: what times depend on beside the call: versions, processor, threads, engine.
        folder: where the file lies; None keeps the table in memory alone.
        timer: gives the seconds of a call.
    """

    def __init__(self, conditions: Mapping[str, str], folder: Path | None, timer: Timer) -> None:
        self.conditions = dict(conditions)
        self._timer = timer
        self._path = None if folder is None else folder / f"latency-{_digest(self.conditions)}.json"
        self._seconds = self._read()
        self._new = False

    @classmethod
    def of_this_machine(cls, device: torch.device) -> LatencyTable:
        """The table of this processor, its threads and this torch, in the user's cache directory."""
        return cls(conditions(device), cache_directory(), functools.partial(time_call, device=device))

    def known(self, key: str) -> float | None:
        """The seconds of a call that was timed before."""
        return self._seconds.get(key)

    def note(self, key: str, seconds: float) -> None:
        """Keep what was timed elsewhere."""
        self._seconds[key] = seconds
        self._new = True

    def seconds(self, key: str, prepare: Callable[[], Call]) -> float:
        """The seconds of a call, timed if it is not known yet.

        Raises:
            Exception: whatever the call raises.
        """
        if key not in self._seconds:
            self.note(key, self._timer(prepare()))
        return self._seconds[key]

    def time(self, call: Call) -> float:
        """The seconds of a call now, which is not kept."""
        return self._timer(call)

    def save(self) -> None:
        """Write what is new; what another process wrote meanwhile stays. A disk that refuses costs the cache alone."""
        if self._path is None or not self._new:
            return
        self._seconds = {**self._read(), **self._seconds}
        data = {"format": _FORMAT, "conditions": self.conditions, "seconds": dict(sorted(self._seconds.items()))}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(data, indent=0) + "\n")
        except OSError:
            return
        self._new = False

    def _read(self) -> dict[str, float]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8")) if self._path is not None else {}
            if data.get("format") != _FORMAT or data.get("conditions") != self.conditions:
                return {}
            return {str(key): float(value) for key, value in data["seconds"].items() if float(value) >= 0}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return {}  # absent, or spoilt: it is measured again


def time_call(call: Call, device: torch.device) -> float:
    """The least seconds of several calls; the least, because everything else on the machine only adds."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    finish()
    best, calls, end = float("inf"), 0, time.perf_counter() + _LEAST_SECONDS
    while calls < _FEWEST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        finish()
        best, calls = min(best, time.perf_counter() - started), calls + 1
    return best


def conditions(device: torch.device) -> dict[str, str]:
    """What the time of a call depends on beside the call itself."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "engine": "eager",
        "torch": str(torch.__version__),
        "processor": processor,
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cache_directory() -> Path:
    """``FXPRUNE_CACHE``, or ``fxprune`` in the user's cache directory."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxprune"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {torch.backends.cpu.get_cpu_capability()}"


def _digest(conditions: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(conditions), sort_keys=True).encode()).hexdigest()[:16]
