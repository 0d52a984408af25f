"""The table: measured once, kept in a file that appears whole, and measured again where it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune.cost import latency as table_module
from fxprune.cost.latency import LatencyTable, cache_directory, conditions

CONDITIONS = {"engine": "eager", "threads": "1"}


def refuse(call: object) -> float:
    raise AssertionError("it was measured before")


def test_measurements_are_kept(tmp_path: Path) -> None:
    first = LatencyTable(CONDITIONS, tmp_path, lambda call: 2.0)
    assert first.seconds("conv", lambda: lambda: None) == 2.0
    first.save()
    again = LatencyTable(CONDITIONS, tmp_path, refuse)
    assert again.seconds("conv", lambda: lambda: None) == 2.0
    assert again.known("linear") is None
    # Under other conditions it is another table.
    other = LatencyTable({**CONDITIONS, "threads": "2"}, tmp_path, lambda call: 1.0)
    assert other.seconds("conv", lambda: lambda: None) == 1.0


def test_two_processes_keep_the_measurements_of_both(tmp_path: Path) -> None:
    one, two = (LatencyTable(CONDITIONS, tmp_path, refuse) for _ in range(2))
    one.note("a", 1.0)
    two.note("b", 2.0)
    one.save()
    two.save()
    found = LatencyTable(CONDITIONS, tmp_path, refuse)
    assert (found.known("a"), found.known("b")) == (1.0, 2.0)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "conditions": {}, "seconds": {}}'])
def test_a_spoilt_file_is_measured_again(tmp_path: Path, text: str) -> None:
    table = LatencyTable(CONDITIONS, tmp_path, lambda call: 2.0)
    table.note("conv", 1.0)
    table.save()
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert LatencyTable(CONDITIONS, tmp_path, refuse).known("conv") is None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e308", "-1.0", '"x"', "null", "1" + "0" * 400, "[" * 100_000])
def test_a_number_that_is_no_time_is_measured_again(tmp_path: Path, number: str) -> None:
    table = LatencyTable(CONDITIONS, tmp_path, refuse)
    table.note("conv", 1.5)
    table.save()
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace("1.5", number))
    assert LatencyTable(CONDITIONS, tmp_path, refuse).known("conv") is None


def test_a_full_disk_loses_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: Path, text: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(table_module, "write_text", full)
    table = LatencyTable(CONDITIONS, tmp_path, lambda call: 2.0)
    assert table.seconds("conv", lambda: lambda: None) == 2.0
    table.save()
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_the_file_and_what_its_name_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FXPRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "fxprune"
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    found = conditions(torch.device("cpu"))
    assert found["threads"] == str(torch.get_num_threads())
    assert found["torch"] == torch.__version__
    assert {"engine", "processor", "system", "device"} <= set(found)
