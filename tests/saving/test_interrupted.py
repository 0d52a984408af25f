"""Killed processes, full disks, places that cannot be written: the old folder stays, or the new one is whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ArtefactError, FileError
from fxprune.planning.plan import Plan
from fxprune.saving import folders, load, save
from fxprune.util.writing import scratch_folder
from tests.killing import can_fork, in_child, killed_after
from tests.saving.networks import make

pytestmark = can_fork
WATCHED = ("saving/folders.py", "saving/saving.py", "fxprune/util/writing.py")


def networks() -> tuple[nn.Module, nn.Module]:
    first, second = make("residual")[0], make("residual")[0]
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    return first, second


def which(folder: Path, *candidates: nn.Module) -> int:
    """Which of the networks a folder holds; it has to hold one of them, whole."""
    state = load(folder).state_dict()
    return next(
        i for i, net in enumerate(candidates) if all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    )


def test_a_killed_save_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    first, second = networks()
    folder, draw, found, lines = tmp_path / "net", random.Random(0), list[int](), 0
    save(first, folder)
    while killed_after(lines, WATCHED, lambda: save(second, folder)) == -signal.SIGKILL:
        lines += draw.randint(5, 30)
        found.append(which(folder, first, second))
    assert which(folder, first, second) == 1
    assert found[0] == 0
    assert len(found) > 8
    assert found == sorted(found)
    # What the killed ones left is gone with the next save.
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_files_of_living_processes_and_other_programs_stay(tmp_path: Path) -> None:
    first, second = networks()
    mine = [".net.saving-notours0", ".net.saving-0123abcd.tar", ".network.saving-0123abcd", ".net.old-0123abcd"]
    for name in mine:
        (tmp_path / name).mkdir()
    left = tmp_path / ".net.exporting-0123abcd"
    left.mkdir()
    with scratch_folder(tmp_path / "net", "saving") as held:
        save(first, tmp_path / "net")
        assert held.exists()
        # An old folder that was set aside is the only one until there is another.
        (tmp_path / mine[3]).mkdir()
        held.rename(held.with_name(".net.saving-0123abcd"))
        save(second, tmp_path / "net")
        assert {path.name for path in tmp_path.iterdir()} == {"net", ".net.saving-0123abcd", *mine}
    save(first, tmp_path / "net")
    assert {path.name for path in tmp_path.iterdir()} == {"net", *mine[:3]}
    assert not left.exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_loading_while_another_process_saves(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    first, second = networks()
    save(first, tmp_path / "net")
    saver = os.fork()
    if not saver:
        while True:
            save(second, tmp_path / "net")
            save(first, tmp_path / "net")
    try:
        found = {which(tmp_path / "net", first, second) for _ in range(60)}
    finally:
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
    assert found == {0, 1}


def test_a_killed_first_save_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    first, _ = networks()
    folder, lines, draw = tmp_path / "net", 0, random.Random(1)
    while killed_after(lines, WATCHED, lambda: save(first, folder)) == -signal.SIGKILL:
        assert not folder.exists() or which(folder, first) == 0
        shutil.rmtree(folder, ignore_errors=True)
        lines += draw.randint(5, 30)


def test_where_folders_cannot_change_places_at_once_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    first, second = networks()
    folder, lines = tmp_path / "net", 0
    save(first, folder)
    while killed_after(lines, WATCHED, lambda: save(second, folder)) == -signal.SIGKILL:
        whole = [folder] if folder.exists() else list(tmp_path.glob(".net.old-*"))
        assert which(whole[0], first, second) in (0, 1)
        whole[0].rename(folder)
        lines += 15


def test_a_process_killed_at_any_moment(tmp_path: Path) -> None:
    """By the clock rather than by lines, so that the writers of libraries are met too."""
    first, second = networks()
    folder, draw = tmp_path / "net", random.Random(2)
    save(first, folder)

    def loop() -> None:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 0.02))
        while True:
            save(second, folder)
            save(first, folder)

    for _ in range(25):
        draw.random()
        assert in_child(loop) == -signal.SIGALRM
        which(folder, first, second)


def test_a_killed_plan_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    old, new = (fxprune.plan(model, torch.randn(2, 4), ratio) for ratio in (0.2, 0.6))
    file, lines, found = tmp_path / "plan.json", 0, list[Plan]()
    old.save(file)
    while killed_after(lines, WATCHED, lambda: new.save(file)) == -signal.SIGKILL:
        found.append(Plan.load(file))
        lines += 1
    assert found[0] == old
    assert all(plan in (old, new) for plan in found)
    assert Plan.load(file) == new
    new.save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_files_that_cannot_be_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    pruned = fxprune.compile(model, torch.randn(2, 4), 0.3)
    report = fxprune.report(pruned)
    assert report.plan is not None
    (tmp_path / "file").write_text("mine")
    for write in (report.plan.save, report.save_html, lambda path: save(pruned, path)):
        with pytest.raises(FileError, match="cannot be written"):
            write(tmp_path / "file" / "it")
    for write in (report.plan.save, report.save_html):
        for folder in (tmp_path, Path()):
            with pytest.raises(FileError, match="cannot be written: Is a directory"):
                write(folder)
    with pytest.raises(FileError, match="cannot be read") as caught:
        Plan.load(tmp_path / "nowhere")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOENT
    monkeypatch.setenv("FXPRUNE_DUMP", str(tmp_path / "file" / "it"))
    with pytest.raises(FileError, match="file/it, which FXPRUNE_DUMP names, cannot be written"):
        fxprune.compile(model, torch.randn(2, 4), 0.3)


@pytest.mark.parametrize("most", [0, 100, 1500])
def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, most: int) -> None:
    resource = pytest.importorskip("resource")
    first, second = networks()
    save(first, tmp_path / "net")

    def save_in_little_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises((FileError, ArtefactError)):
            save(second, tmp_path / "net")

    assert in_child(save_in_little_space) == 0
    assert which(tmp_path / "net", first, second) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("place", ["file/net", "file/deeper/net", "name" * 100])
def test_places_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises((FileError, ArtefactError)):
        save(networks()[0], tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
