"""Equal inputs and seed give equal plans and networks, byte for byte, in every process and with every hash seed."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

ROOT = Path(__file__).parents[1]

PROGRAM = """
import hashlib, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
from tests.test_determinism import calibrated_digests, digests
print("\\n".join(digests() + calibrated_digests()))
"""


class Mixed(nn.Module):
    """Many groups with equal scores, a concatenation, a shuffle, a residual stream and a norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.c, self.d = nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.Conv2d(24, 24, 1)
        self.norm, self.head = nn.GroupNorm(4, 24), nn.Linear(24, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                # Few different values, so that many channels tie.
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        x = self.c(x).relu().unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2)
        x = x + self.norm(self.d(x))
        return self.head(x.mean((2, 3)))


def sample() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def digests() -> list[str]:
    """What must not differ: plans by several options, code and weights of one result, drawing of its groups."""
    model = Mixed().eval()
    graph = fxprune.analyze(model, sample())
    members = [(g.name, g.size, [(m.tensor, m.dim, m.role) for m in g.members]) for g in graph.groups]
    texts = [graph.draw(), repr(members)]
    choices: list[dict[str, Any]] = [{}, {"budget": "params"}, {"scope": "uniform"}, {"criterion": "random", "seed": 3}]
    texts += [fxprune.plan(model, sample(), 0.4, **options).to_json() for options in choices]
    pruned = fxprune.compile(model, sample(), 0.4)
    weights = b"".join(t.numpy().tobytes() for t in pruned.state_dict().values())
    texts += [pruned.code, repr(list(pruned.state_dict()))]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts] + [hashlib.sha256(weights).hexdigest()]


CALIBRATED = ("taylor", "hrank", "feature_distance", "thinet")


def calibrated_digests() -> list[str]:
    """Plans of criteria that look at data, the bytes of a saved folder, and last recovered weights."""
    model = Mixed().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.linspace(0, 1, parameter.numel()).reshape(parameter.shape))
    generator = torch.Generator().manual_seed(11)
    batches = [(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4) % 5) for _ in range(3)]
    plans = [fxprune.plan(model, sample(), 0.4, criterion=name, calibration=batches).to_json() for name in CALIBRATED]
    pruned = fxprune.compile(model, sample(), 0.4, criterion="taylor", calibration=batches, recover=None)
    recovered = fxprune.recover(pruned, model, "reconstruct", calibration=batches)
    with tempfile.TemporaryDirectory() as folder:
        fxprune.save(pruned, Path(folder) / "net")
        files = sorted(path for path in (Path(folder) / "net").iterdir() if path.name not in TIMED)
        saved = [path.name.encode() + path.read_bytes() for path in files]
    weights = b"".join(tensor.numpy().tobytes() for tensor in recovered.state_dict().values())
    return [hashlib.sha256(data).hexdigest() for data in [*(plan.encode() for plan in plans), *saved, weights]]


# What holds the time that each step took.
TIMED = ("report.json", "manifest.json")


def digests_elsewhere(hash_seed: str, threads: int) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@functools.cache
def here() -> list[str]:
    return digests() + calibrated_digests()


@pytest.mark.parametrize(("hash_seed", "threads"), [("1", 1), ("4242", 2)])
def test_other_processes_give_the_same(hash_seed: str, threads: int) -> None:
    found = digests_elsewhere(hash_seed, threads)
    assert found[:-1] == here()[:-1]
    # Least squares adds up in the order that the threads of the linear algebra library ask for.
    assert threads != torch.get_num_threads() or found[-1] == here()[-1]


def test_the_same_process_gives_the_same_again() -> None:
    first = digests()
    torch.randn(5)
    assert digests() == first


def test_the_seed_of_the_caller_changes_nothing() -> None:
    torch.manual_seed(1)
    first = digests()
    torch.manual_seed(2)
    assert digests() == first


def test_the_order_of_the_patterns_changes_no_choice() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])
    plans = [fxprune.plan(model, torch.randn(2, 8), 0.3, exclude=names) for names in (["1", "3"], ["3", "1"])]
    assert plans[0].groups == plans[1].groups


def test_the_order_of_the_networks_before_it_changes_nothing() -> None:
    fxprune.compile(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8), 0.3)
    first = digests()
    fxprune.analyze(nn.Sequential(*[nn.Linear(8, 8) for _ in range(9)]), torch.randn(2, 8))
    assert digests() == first
