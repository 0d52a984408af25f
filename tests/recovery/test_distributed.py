"""Two processes with half of the data each recover the network that one process with all of it recovers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import fxprune
from fxprune.recovery import FoldBias, Match, Reconstruct
from tests.processes import run_ranks
from tests.recovery.test_reconstruct import Block

PROGRAM = """
from tests.recovery.test_distributed import images, recovered
torch.save(recovered(list(images().split(5))[rank::2]), f"{folder}/found.{rank}")
"""
# Fewer positions than there are, so that they are drawn.
# The fits are of few samples, and magnify rounding.
ROUNDING = {"rtol": 1e-7, "atol": 1e-8}
HOW = {
    "reconstruct": Reconstruct(positions=9),
    "bias": FoldBias(positions=9),
    "batchnorm": "batchnorm",
    "match": Match(passes=1),
}


def images() -> Tensor:
    """The same at every call."""
    return torch.randn(40, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def recovered(batches: list[Tensor]) -> dict[str, Tensor]:
    """Weights after each recovery, how many samples it saw, and the widths of a plan by reconstruction."""
    torch.manual_seed(0)
    model = Block()
    cut = fxprune.compile(model, images()[:2], 0.4, verify=False)
    found = {}
    for name, how in HOW.items():
        back = fxprune.recover(cut, model, how, calibration=batches)
        found |= {f"{name}.{key}": value for key, value in back.state_dict().items()}
        found[f"{name}.samples"] = torch.tensor(fxprune.report(back).recovery[0].samples)
    plan = fxprune.plan(model, images()[:2], 0.4, scope="reconstruction", calibration=batches)
    return found | {f"units.{name}": torch.tensor(units) for name, units in plan.groups.items()}


def test_shards_of_two_ranks(tmp_path: Path) -> None:
    run_ranks(PROGRAM, tmp_path)
    first, second = (torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Ranks train on batches of their own, and go the same way all the same.
    alike = {
        name: tensor for name, tensor in recovered(list(images().split(5))).items() if not name.startswith("match.")
    }
    torch.testing.assert_close({name: first[name] for name in alike}, alike, **ROUNDING)
    assert first["reconstruct.samples"] == 40


def test_how_data_are_cut_does_not_matter() -> None:
    torch.testing.assert_close(recovered([images()]), recovered(list(images().split(7))), **ROUNDING)
