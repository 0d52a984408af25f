"""The documentation: every Python example runs, in the order of its page, and every link leads somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fxprune import cli
from fxprune.rules import registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_FENCE = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def examples(page: Path, *, runnable: bool = False) -> str:
    """The Python blocks of a page as one program, at the lines where they stand.

    ``runnable``: without the sections ("## ...") that import a package which is not installed; where the head of a page
    does, nothing is left.
    """
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    start = end = 0
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        start, end = end, end + len(section)
        blocks = list(_FENCE.finditer(section))
        if runnable and any(not installed(name) for found in blocks for name in imported(textwrap.dedent(found[2]))):
            if start == 0:
                return ""
            continue
        for found in blocks:
            first = text[: start + found.start(2)].count("\n")
            for offset, line in enumerate(textwrap.dedent(found[2]).splitlines()):
                lines[first + offset] = line
    return "\n".join(lines)


def imported(block: str) -> set[str]:
    """The packages that a block imports."""
    return set(re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)) - WRITTEN


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# What an example writes itself before it imports it.
WRITTEN = {"model"}


# What a whole page needs, where its head does not import it.
@pytest.fixture(autouse=True)
def _no_setting_left() -> Iterator[None]:
    """Take back what a trainer sets for the whole process."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


NEEDS = {"distilling": ("accelerate",), "tutorial": ("accelerate", "sklearn")}
WITH_EXAMPLES = [page for page in PAGES if examples(page).strip()]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module)
    program = examples(page, runnable=True)
    if not program.strip():
        pytest.skip("the page is about a package that is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # An example may register a rule, which is for it alone.
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    exec(compile(program, str(page), "exec"), {"__name__": f"docs_{page.stem}"})


def test_the_notebook_runs_and_shows_what_it_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("make", DOCS / "pictures" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    stored = json.loads((DOCS / "digits.ipynb").read_text())["cells"]
    monkeypatch.chdir(tmp_path)

    def shown(cells: list[dict[str, Any]]) -> list[list[tuple[str, list[str]]]]:
        return [[(o["output_type"], sorted(o.get("data", ()))) for o in cell.get("outputs", ())] for cell in cells]

    assert shown(make.run_notebook(stored)) == shown(stored)
    assert all(cell["outputs"] or cell["id"] == "c12" for cell in stored if cell["cell_type"] == "code")


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


def names_in(folder: Path) -> set[str]:
    """The names of all files, folders, classes, functions and of what is assigned."""
    paths = list(folder.rglob("*"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths if path.suffix == ".py")
    found = re.findall(r"^ *(?:(?:def|class) (\w+)|(?:self\.)?(\w+)(?:: [^=\n]+)? = )", code, re.MULTILINE)
    return {name for path in paths for name in (path.name, path.stem)} | {name for pair in found for name in pair}


def test_every_package_has_a_picture_of_names_that_exist() -> None:
    """In a picture, files, capitalised words, words with underscores and words before brackets are names."""
    text, package = (DOCS / "architecture.md").read_text(), ROOT / "fxprune"
    pictures = dict(re.findall(r"^```\nfxprune/(\w+)/\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert pictures.keys() == {file.parent.name for file in package.glob("*/__init__.py")}
    everywhere = names_in(package)
    for name, picture in pictures.items():
        drawn = set(re.findall(r"\w+\.py|\b[A-Z][a-z]\w*|\w+_\w+|\w+(?=\()", picture))
        assert drawn <= everywhere, name
        assert len(drawn & names_in(package / name)) >= 3, name
        assert len(picture.splitlines()) < 12, name
        assert max(map(len, picture.splitlines())) <= 100, name


def test_the_picture_of_a_residual_block_is_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "concepts.md"
    names: dict[str, object] = {}
    exec(compile(examples(page), str(page), "exec"), names)
    assert names["picture"] == (DOCS / "pictures" / "residual.svg").read_text()
