"""A program run by two processes that torch.distributed connects through a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PROLOGUE = """
import sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=2)
"""
_EPILOGUE = """
dist.destroy_process_group()
"""


def run_ranks(program: str, folder: Path) -> None:
    """Run ``program`` as ranks 0 and 1 (its names ``rank`` and ``folder``), from the repository's root."""
    number = sum(path.name.startswith("store") for path in folder.iterdir())
    store = folder / f"store{number}"
    workers = []
    for rank in range(2):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-c", _PROLOGUE + program + _EPILOGUE, str(rank), str(folder), str(store)]
        environment = {**os.environ, **ranks, "OMP_NUM_THREADS": "1"}
        workers.append(subprocess.Popen(command, cwd=_ROOT, env=environment, stderr=subprocess.PIPE))
    store.with_suffix(".started").touch()
    results = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(results)
