"""A training that is killed at any line of what it writes leaves whole files, and ends with the same weights."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.distillation import Distilled
from tests.distillation.networks import Plain, pair, shuffled
from tests.killing import can_fork, in_fresh_process, killed_after

pytest.importorskip("accelerate")
pytestmark = can_fork
STEPS = 6
# What writes files, down to torch's own writer, so that a checkpoint is met half written.
WRITERS = ("distillation/checkpoints.py", "fxprune/util/writing.py", "torch/serialization.py")
FINISHED = ["checkpoint.pt", "metrics.jsonl"]


def train(folder: Path | None) -> Distilled:
    """Random order and dropout, momentum; a checkpoint every second step."""
    pruned, teacher = pair(lambda: Plain(dropout=0.3))
    options = {"optimizer": "adamw", "checkpoint_every": 2, "log_every": 1}
    return fxprune.distill(pruned, teacher, shuffled(), steps=STEPS, folder=folder, progress=False, **options)


def check_whole(folder: Path) -> int:
    """Which step the files speak of: the checkpoint is whole or not there, and only the log's last line may be cut."""
    log = folder / "metrics.jsonl"
    rows = log.read_text().splitlines() if log.exists() else []
    for row in rows[:-1]:
        json.loads(row)
    checkpoint = folder / "checkpoint.pt"
    return int(torch.load(checkpoint, weights_only=True)["step"]) if checkpoint.exists() else 0


def check_goes_on(folder: Path, whole: Distilled) -> int:
    """Resumed, it ends as the one that nobody killed, and nothing half written is left; gives the step it was at."""
    step, weights = check_whole(folder), whole.network.state_dict()
    found = train(folder)
    assert found.resumed == step
    assert found.history == whole.history
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert sorted(path.name for path in folder.iterdir()) == FINISHED
    return step


def test_a_training_killed_at_lines_of_what_it_writes(tmp_path: Path) -> None:
    whole, folder = train(None), tmp_path / "net"
    lines, steps, cut = 10, list[int](), 0
    while (status := killed_after(lines, WRITERS, partial(train, folder), in_fresh_process)) == -signal.SIGKILL:
        cut += any(folder.glob(".*.part"))
        steps.append(check_goes_on(folder, whole))
        shutil.rmtree(folder)
        lines = round(1.5 * lines) + 30
    assert status == 0
    assert cut >= 3
    assert steps == sorted(steps)
    assert {0, 2, 4} <= set(steps)


def test_a_training_killed_by_the_clock_again_and_again(tmp_path: Path) -> None:
    whole, folder = train(None), tmp_path / "net"
    for hundredths in (5, 8, 10, 12):
        assert in_fresh_process(partial(bounded, folder, hundredths / 100)) in (0, -signal.SIGALRM)
        check_whole(folder)
    check_goes_on(folder, whole)


def bounded(folder: Path, seconds: float) -> None:
    """A training that the clock ends."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    train(folder)
