"""A training that is killed in the middle ends with the weights that it would have had."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import fxprune
from fxprune.distillation import Distilled
from fxprune.errors import DistillationError, OptionError
from tests.distillation.networks import Noisy, Plain, pair, shuffled

pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[2]
STEPS = 22

PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
from tests.distillation.test_resuming import train
train(sys.argv[1], int(sys.argv[2]), 0.04)
"""


class Slow(Noisy):
    """Takes its time, so that there is a middle to be killed in."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.seconds / 4)
        return super().__getitem__(index)


def train(folder: str, workers: int, seconds: float = 0.0) -> Distilled:
    """Random order, random noise on images, dropout, hints, two batches a step, momentum and decay of the rate."""
    pruned, teacher = pair(lambda: Plain(dropout=0.3))
    generator = None if workers else torch.Generator().manual_seed(8)
    loader = DataLoader(Slow(seconds), 4, shuffle=True, num_workers=workers, generator=generator)
    return fxprune.distill(
        pruned,
        teacher,
        loader,
        steps=STEPS,
        optimizer="adamw",
        accumulate=2,
        hints="second",
        folder=folder,
        checkpoint_every=4,
        log_every=1,
        evaluate=lambda network: float(network.head.weight.detach().square().sum()),
        evaluate_every=5,
        keep="best",
    )


def kill_in_the_middle(folder: Path, workers: int) -> None:
    """Run another process until its log has passed the middle of the training, then kill it."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(workers)], cwd=ROOT) as worker:
        log = folder / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 10):
            assert worker.poll() is None, "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.send_signal(signal.SIGKILL)
        worker.wait()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.deep)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, workers: int) -> None:
    whole = train(str(tmp_path / "whole"), workers)
    kill_in_the_middle(tmp_path / "killed", workers)
    found = train(str(tmp_path / "killed"), workers)
    assert 8 <= found.resumed < STEPS
    assert f"resumed after step {found.resumed}" in repr(found)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, found.network.state_dict()[name]), name
    assert found.history == whole.history
    assert (found.score, found.best_step) == (whole.score, whole.best_step)
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "killed")]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]
    # A run that has ended is not trained again.
    assert train(str(tmp_path / "killed"), workers).resumed == STEPS


def test_checkpoints_of_another_training_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    given = (*pair(), shuffled())
    fxprune.distill(*given, steps=2, folder=tmp_path, seed=1)
    with pytest.raises(DistillationError, match="seed=1"):
        fxprune.distill(*given, steps=2, folder=tmp_path, seed=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint.pt", "metrics.jsonl"]
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DistillationError, match="move it away"):
        fxprune.distill(*given, steps=2, folder=tmp_path)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_longer_run_continues(tmp_path: Path, precision: str) -> None:
    given, options = (*pair(), shuffled()), {"schedule": "constant", "precision": precision}
    fxprune.distill(*given, steps=5, folder=tmp_path, checkpoint_every=3, **options)
    longer = fxprune.distill(*given, steps=9, folder=tmp_path, checkpoint_every=3, **options)
    straight = fxprune.distill(*given, steps=9, **options)
    assert longer.resumed == 5
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, longer.network.state_dict()[name])


def test_workers_that_outlive_an_epoch_are_refused_with_a_folder(tmp_path: Path) -> None:
    loader = DataLoader(Noisy(), 4, num_workers=1, persistent_workers=True)
    with pytest.raises(OptionError, match="persistent_workers"):
        fxprune.distill(*pair(), loader, steps=1, folder=tmp_path)
