"""The examples of docs/criteria.md are run, so that they stay true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fxprune

PAGE = (Path(__file__).parent.parent / "docs" / "criteria.md").read_text()


@pytest.mark.parametrize(("kind", "prints"), [("features", "Contrast"), ("weights", "groups")])
def test_examples(kind: str, prints: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(rf"<!-- example: {kind} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    assert sum(1 for line in found[1].splitlines() if line.strip()) <= 14
    exec(compile(found[1], "criteria.md", "exec"), {"__name__": "__main__"})
    assert prints in capsys.readouterr().out


def test_every_name_is_described() -> None:
    for name in fxprune.known_criteria():
        assert f"| `{name}` |" in PAGE
