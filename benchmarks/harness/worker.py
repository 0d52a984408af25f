"""What runs in a process of its own; see ``processes.py``."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.failures import failure_text
from benchmarks.harness.limits import TimeLimitReached
from benchmarks.harness.memory import limit_memory, peak_memory


def run_request(request: Mapping[str, Any], errors: str) -> None:
    """Run the task of a request and write what it records, a JSON line each time; what it prints goes to ``errors``."""
    _redirect_output(errors)
    if request["gib"]:
        limit_memory(int(request["gib"] * 2**30))
    warnings.simplefilter("ignore")
    with Path(request["records"]).open("a", encoding="utf-8") as file:

        def record(**fields: Any) -> None:
            file.write(json.dumps({"fields": fields, "peak": peak_memory()}) + "\n")
            file.flush()

        module, _, name = request["task"].partition(":")
        try:
            getattr(importlib.import_module(module), name)(record, **request["arguments"])
        except (Exception, TimeLimitReached) as error:
            record(failure=failure_text(error))
        record()


def _redirect_output(errors: str) -> None:
    sink = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Libraries in C write to the descriptors themselves.
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)
