"""The process that runs one task: ``python -m benchmarks.harness.worker REQUEST``; see ``processes.py``."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.harness.failures import failure_text
from benchmarks.harness.limits import TimeLimitReached
from benchmarks.harness.memory import limit_memory, peak_memory


def main(request_text: str) -> None:
    """Run the task of a request and write what it records, a JSON line each time."""
    request = json.loads(request_text)
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


if __name__ == "__main__":
    main(sys.argv[1])
