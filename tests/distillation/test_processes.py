"""Two processes with half of each batch train the network that one process trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.distillation import Hint
from fxprune.errors import DistillationError
from tests.distillation.networks import CLASSES, Normed, images, pair, shuffled
from tests.processes import run_ranks

pytest.importorskip("accelerate")

PROGRAM = """
from tests.distillation.test_processes import normed, train
found = train(4, f"{folder}/run", steps=STEPS)
torch.save(found.network.state_dict(), f"{folder}/weights.{rank}")
torch.save(normed().network.state_dict(), f"{folder}/normed.{rank}")
open(f"{folder}/repr.{rank}", "w").write(repr(found.history))
"""


def train(size: int, folder: str | None = None, steps: int = 10) -> fxprune.Distilled:
    """Shuffled batches, a hint with a projection, clipped gradients."""
    pruned, teacher = pair()
    x = images(48)
    loader = DataLoader(TensorDataset(x, torch.arange(48) % CLASSES), size, shuffle=True)
    hints = ["first", Hint("second", projection=True)]
    return fxprune.distill(
        pruned, teacher, loader, steps=steps, hints=hints, clip=1.0, learning_rate=0.05, folder=folder,
        checkpoint_every=4, schedule="constant",
    )  # fmt: skip


def normed() -> fxprune.Distilled:
    """Each process normalises its own part of a batch."""
    return fxprune.distill(
        *pair(Normed), shuffled(), steps=3, evaluate=lambda network: float(network.norm.running_mean[0])
    )


# The second launch goes on from the first one's checkpoint.
@pytest.mark.parametrize("launches", [(10,), pytest.param((6, 10), marks=pytest.mark.deep)])
def test_two_processes_equal_one(tmp_path: Path, launches: tuple[int, ...]) -> None:
    whole = train(8)
    for steps in launches:
        run_ranks(PROGRAM.replace("STEPS", str(steps)), tmp_path)
    states = [torch.load(tmp_path / f"weights.{rank}", weights_only=True) for rank in range(2)]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], value, rtol=1e-5, atol=1e-6)
    first, second = (torch.load(tmp_path / f"normed.{rank}", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "repr.0").read_text() == (tmp_path / "repr.1").read_text()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1 + len(launches)


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(DistillationError, match="torchrun"):
        train(4)


@pytest.mark.deep
def test_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch\n"
        "from tests.distillation.test_processes import train\n"
        "found = train(4)\n"
        f"torch.save(found.network.state_dict(), {str(tmp_path / 'weights.')!r} + os.environ['RANK'])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    found = torch.load(tmp_path / "weights.0", weights_only=True)
    for name, value in train(8).network.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
