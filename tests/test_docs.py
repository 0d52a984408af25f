"""The documentation: every Python example runs, in the order of its page, and every link leads somewhere."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from fxprune import cli
from fxprune.rules import registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_FENCE = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def examples(page: Path) -> str:
    """The Python blocks of a page as one program, at the lines where they stand."""
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    for found in _FENCE.finditer(text):
        first = text[: found.start(2)].count("\n")
        for offset, line in enumerate(textwrap.dedent(found[2]).splitlines()):
            lines[first + offset] = line
    return "\n".join(lines)


# What a page needs beside fxprune's own dependencies.
NEEDS = {"distilling": ("accelerate",), "tutorial": ("accelerate", "sklearn")}
WITH_EXAMPLES = [page for page in PAGES if examples(page).strip()]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # An example may register a rule, which is for it alone.
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    exec(compile(examples(page), str(page), "exec"), {"__name__": f"docs_{page.stem}"})


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            place = (page.parent / link).resolve()
            if not link.startswith("http") and place.is_relative_to(DOCS):
                assert place.exists(), f"{page.name}: {link}"


def test_the_navigation_leads_somewhere() -> None:
    config = (ROOT / ".mkdocs.yml").read_text()
    assert all(f" guides/{page.name}\n" in config for page in (DOCS / "guides").glob("*.md"))
    for place in re.findall(r": ([\w/]+\.md)\n", config):
        assert (DOCS / place).exists(), place


def test_every_command_is_described() -> None:
    text = (DOCS / "command_line.md").read_text()
    assert all(f"fxprune {command.name} " in text for command in cli.app.registered_commands)


def test_the_picture_of_a_residual_block_is_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "concepts.md"
    names: dict[str, object] = {}
    exec(compile(examples(page), str(page), "exec"), names)
    assert names["picture"] == (DOCS / "pictures" / "residual.svg").read_text()
