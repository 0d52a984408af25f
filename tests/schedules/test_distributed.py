"""Two processes that train together come to one plan, and to equal weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fxprune
from fxprune.schedules import FusedTraining, IterativePruning, Polarization, SoftPruning, SparseTraining
from tests.criteria.calibrated import Small, images

ROOT = Path(__file__).parents[2]
SAMPLE = images(2)[0]

PROGRAM = """
import sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
from tests.schedules.test_distributed import outcome
torch.save(outcome(rank), f"{sys.argv[2]}.{rank}")
dist.destroy_process_group()
"""


def train(network: nn.Module, rank: int, *regularisers: SparseTraining | Polarization) -> None:
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
    x, y = images(8, seed=10 + rank)
    parallel.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), y).backward()
        for regulariser in regularisers:
            regulariser.step()
        optimizer.step()
    # Running statistics are each rank's own; what is compared is what is averaged.
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    parallel.eval()


def outcome(rank: int) -> dict[str, object]:
    torch.manual_seed(rank)
    made: dict[str, nn.Module] = {}
    model: nn.Module = Small()
    iterative = IterativePruning(model, SAMPLE, 0.5, steps=2)
    while not iterative.finished:
        model, _ = iterative.step(model)
        train(model, rank)
    made["iterative"] = model
    model = Small()
    soft = SoftPruning(model, SAMPLE, 0.5)
    for _ in range(2):
        soft.wake()
        train(model, rank, SparseTraining(model), Polarization(model))
        soft.step()
    made["soft"] = soft.compact()
    fused = FusedTraining(Small(), SAMPLE, epochs=2, rates={"conv1": 0.5, "stem": 0.5}, kappa=0.5)
    for _ in range(2):
        fused.step()
        train(fused.network, rank)
    made["fused"] = fused.compact()
    texts = {name: fxprune.report(net).plan.to_json() for name, net in made.items()}  # type: ignore[union-attr]
    return texts | {f"{name} weights": dict(net.state_dict()) for name, net in made.items()}


def test_two_ranks_prune_alike(tmp_path: Path) -> None:
    store = tmp_path / "store"
    workers = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(store)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, error = worker.communicate(timeout=240)
        assert worker.returncode == 0, error.decode()
    first, second = (torch.load(f"{store}.{rank}", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, str):
            assert value == second[name], name
        else:
            assert all(torch.equal(tensor, second[name][key]) for key, tensor in value.items()), name
