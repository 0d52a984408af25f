"""Two processes with half of the data each come to the plan of one process with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import fxprune
from tests.criteria.calibrated import Batches, Small, batches, images

ROOT = Path(__file__).parents[2]
NAMES = [
    "feature_entropy",
    "feature_distance",
    "taylor",
    "hessian",
    "thinet",
    "multi_source",
    "parallel",
    "chip",
    "reconstruction",
]

PROGRAM = """
import sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
from tests.calibration.test_distributed import plans
from tests.criteria.calibrated import batches
text = plans(batches(3)[rank::2])
open(f"{sys.argv[2]}.{rank}", "w").write(text)
dist.destroy_process_group()
"""


def plans(data: Batches) -> str:
    model, sample = Small(), images(2)[0]
    made = [fxprune.plan(model, sample, 0.45, criterion=name, calibration=data) for name in NAMES]
    return "\n".join(plan.to_json() for plan in made)


def test_plans_of_two_ranks(tmp_path: Path) -> None:
    assert not dist.is_initialized()
    store = tmp_path / "store"
    workers = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(store)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error.decode()
    found = [Path(f"{store}.{rank}").read_text() for rank in range(2)]
    assert found[0] == found[1] == plans(batches(3))
    assert torch.get_default_dtype() == torch.float32
