"""The README is run, so that it stays true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fxprune import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def marked(kind: str) -> str:
    found = re.search(rf"<!-- {kind} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"README.md has no block marked {kind}"
    return found[1]


def test_the_first_example_trains_prunes_and_prints_both_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    exec(compile(marked("example: front"), "README.md", "exec"), {"__name__": "__main__"})
    before, after = (float(line.rstrip("%")) for line in capsys.readouterr().out.split())
    assert before > 90
    assert after > before - 2


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(marked("example: python"), "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "nodes equals the masked original's" in printed
    assert "by add" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "plan.json",
        "report.html",
        "resnet18-pruned",
        "resnet18-pruned.pt2",
    }


def test_commands_are_one_line_that_starts_from_nothing() -> None:
    for kind in ("command: main job", "command: test"):
        command = marked(kind)
        assert command.count("\n") == 1
        assert command.startswith("python -m venv .venv && .venv/bin/python -m pip install ")


def test_continuous_integration_runs_the_test_command_as_it_stands_here() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- command: test -->" in script
    assert "pytest" not in script


def test_pages_and_pictures_are_there() -> None:
    places = re.findall(r"""\]\(([\w/.]+)(?:#[\w-]+)?\)|src="([\w/.]+)\"""", README)
    assert len(places) > 10
    assert all((ROOT / (link or picture)).exists() for link, picture in places)


def test_every_command_is_mentioned() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert f"fxprune {name} " in README
