"""A task in a process of its own, with a time limit; what it had found out survives its end."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from benchmarks.harness.worker import run_request

__all__ = ["Outcome", "Record", "Task", "run_in_process"]

Record = Callable[..., None]
"""``record(name=value, ...)``: JSON values that are kept even if the task fails or is stopped later."""

Task = Callable[..., None]
"""``task(record, **arguments)``, a function at the top level of a module."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        fields: everything it recorded.
        failure: empty, or why it did not come to its end.
        seconds: wall-clock time of the whole process, imports included.
        peak_mib: largest resident size at the last time it recorded something, in MiB.
    """

    fields: dict[str, Any]
    failure: str
    seconds: float
    peak_mib: float


def run_in_process(
    task: Task, arguments: Mapping[str, Any], limit_seconds: float, memory_gib: float | None = None
) -> Outcome:
    """Run ``task(record, **arguments)`` in a fresh process and stop it after ``limit_seconds``.

    ``arguments`` are JSON values. With ``memory_gib``, allocations beyond that fail inside the process.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fxprune-benchmark-") as folder:
        records, errors = Path(folder) / "records", Path(folder) / "errors"
        request = {"task": _import_path(task), "arguments": dict(arguments), "records": str(records), "gib": memory_gib}
        failure = _run(request, errors, limit_seconds)
        if failure is None:
            failure = _last_line(errors)
        fields, peak = _collected(records)
    failure = fields.pop("failure", "") or failure
    return Outcome(fields, failure, time.perf_counter() - started, peak / 2**20)


@cache
def _context() -> ForkServerContext:
    """Processes forked from one that has imported the heavy libraries, which take longer than many a measurement.

    It has not imported fxprune, and it holds no threads and no caches of an earlier task.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "timm", "networkx"])  # those not installed are left out
    return context


def _run(request: Mapping[str, Any], errors: Path, limit_seconds: float) -> str | None:
    """Why the process was stopped, "" if it ended well, None if it failed by itself."""
    process = _context().Process(target=run_request, args=(dict(request), str(errors)))
    process.start()
    process.join(limit_seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return f"more than {limit_seconds:g} s"
    code = process.exitcode or 0
    if code < 0:
        return f"stopped by signal {signal.Signals(-code).name}"
    return None if code else ""


def _import_path(task: Task) -> str:
    module = task.__module__
    if module == "__main__":
        specification = sys.modules["__main__"].__spec__
        assert specification is not None, "run the script with python -m"
        module = specification.name
    return f"{module}:{task.__name__}"


def _collected(records: Path) -> tuple[dict[str, Any], float]:
    fields: dict[str, Any] = {}
    peak = 0.0
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    for line in lines:
        entry = json.loads(line)
        fields.update(entry["fields"])
        peak = max(peak, float(entry["peak"]))
    return fields, peak


def _last_line(errors: Path) -> str:
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it failed without a message"
