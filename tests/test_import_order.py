"""Packages import only from those above them in a list, and a compilation loads nothing that it does not need."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxprune

ROOT = Path(fxprune.__file__).parent
ORDER = """errors util axes rules capture analysis cost calibration criteria planning options proof rewriting reporting
    recovery keeping program pipeline api schedules distillation saving cli __main__""".split()
# The proof may know what was captured, and how a call's arguments are held; never what the analysis made of it.
THE_PROOF_KNOWS = {"errors", "util", "capture"}


def imports() -> Iterator[tuple[str, str, str]]:
    """Importing package, imported package, and the line that says so."""
    for file in sorted(ROOT.rglob("*.py")):
        package = file.relative_to(ROOT).with_suffix("").parts[0]
        for name, line in imported(file):
            if name.startswith("fxprune.") and name.split(".")[1] != package and package != "__init__":
                yield package, name.split(".")[1], f"{file.relative_to(ROOT)}:{line}"


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """What a file imports, anywhere in it, and the lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)


def test_packages_import_from_above() -> None:
    against = [f"{line} imports {to}" for of, to, line in imports() if ORDER.index(of) < ORDER.index(to)]
    assert not against, "\n".join(against)


def test_the_list_names_every_package() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.name not in ("__pycache__", "py.typed", "__init__.py")}
    assert parts == set(ORDER)


def test_the_proof_shares_nothing_with_the_analysis() -> None:
    known = {to for of, to, _ in imports() if of == "proof"}
    assert known <= THE_PROOF_KNOWS


def test_nothing_is_imported_relatively() -> None:
    """One way to write an import."""
    for file in ROOT.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)), file


@pytest.mark.parametrize(("folder", "other"), [("tests", "benchmarks"), ("benchmarks", "tests")])
def test_tests_and_benchmarks_do_not_import_one_another(folder: str, other: str) -> None:
    files = (ROOT.parent / folder).rglob("*.py")
    found = [f"{file}: {name}" for file in files for name, _ in imported(file) if name.split(".")[0] == other]
    assert not found, "\n".join(found)


def test_a_compilation_loads_neither_saving_nor_training() -> None:
    code = (
        "import sys, torch, fxprune\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()\n"
        "fxprune.compile(net, torch.randn(1, 3, 8, 8), 0.3)\n"
        "unasked = ('saving', 'schedules', 'distillation', 'cli')\n"
        "print(*[m for m in sys.modules if m.split('.')[0] == 'fxprune' and m.split('.')[-1:][0] != 'fxprune'\n"
        "        and m.split('.')[1] in unasked])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert found.stdout.split() == []


def test_files_and_functions_are_small_and_few() -> None:
    files = {file: file.read_text(encoding="utf-8") for file in ROOT.rglob("*.py")}
    assert not [str(file) for file, text in files.items() if text.count("\n") > 400]
    assert len(files) <= 215
    assert len([part for part in ROOT.iterdir() if part.name not in ("__pycache__", "py.typed")]) <= 25


def test_names_are_listed_at_the_entry_of_a_package_alone() -> None:
    """Everywhere else an underscore says what is private."""
    listing = {file for file in ROOT.rglob("*.py") if "\n__all__ = " in file.read_text(encoding="utf-8")}
    assert {file.name for file in listing} <= {"__init__.py", "errors.py"}
