"""The run for an accelerator, with a tiny network on the CPU and, where there is CUDA, there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from torch import nn

from benchmarks import accelerator
from benchmarks.accelerator import Subject, main, measurements
from benchmarks.tables import ResumableTable

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def tiny() -> tuple[nn.Module, torch.Tensor]:
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.Flatten(), nn.Linear(16 * 4 * 4, 4))
    return nn.Sequential(*layers), torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_measured(device: str) -> None:
    subject = Subject("tiny", tiny, torch.device(device))
    wanted = dict(measurements(subject.device))
    assert "proof" in str(wanted["compile"](subject)["note"])
    latency = wanted["eager, round_to 8"](subject)
    assert {"original ms", "pruned ms"} <= latency.keys()
    assert {p.device.type for p in subject.pruned(8).parameters()} == {device}


def test_a_table_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(subject: Subject) -> dict[str, object]:
        calls.append(subject.name)
        if len(calls) == 1:
            raise ValueError("broken")
        return {"seconds": 1.0}

    calls: list[str] = []
    monkeypatch.setattr(accelerator, "measurements", lambda device: [("first", row), ("second", row)])
    monkeypatch.setattr(accelerator, "NETWORKS", {"tiny": {"a": tiny}})
    out = tmp_path / "table.csv"
    main("cpu", "tiny", 0.0, out)
    assert not calls
    main("cpu", "tiny", 1.0, out)
    main("cpu", "tiny", 1.0, out)
    assert calls == ["a", "a"]
    rows = ResumableTable(out, accelerator._COLUMNS).rows
    assert rows["a: first"]["note"] == "ValueError: broken"
    assert rows["a: second"]["seconds"] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="--size tiny --device cpu"):
        main("cuda", "tiny", 0.0, tmp_path / "table.csv")
