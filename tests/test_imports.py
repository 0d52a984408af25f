"""What an import costs: the command line answers without torch, and the package still has every name."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune
from fxprune.cli import options
from fxprune.criteria import known_criteria
from fxprune.errors import FxpruneError
from fxprune.options import table
from fxprune.planning import BUDGETS
from fxprune.recovery import known_recoveries
from fxprune.saving.exporting import FORMATS
from fxprune.saving.timing import RUNTIMES

ROOT = Path(fxprune.__file__).parent.parent
HEAVY = ("torch", "torchvision", "networkx", "numpy")


def loaded_after(code: str, **environment: str) -> set[str]:
    """The heavy libraries that a new process has imported after some code."""
    wrapped = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('\\nLOADED', *[m for m in {HEAVY} if m in sys.modules]))\n{code}"
    )
    found = subprocess.run(
        [sys.executable, "-c", wrapped],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        timeout=120,
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith("LOADED")]
    assert lines, found.stderr
    return set(lines[-1].split()[1:])


@pytest.mark.parametrize("words", [["--help"], ["compile", "--help"], ["benchmark", "--help"], []], ids=" ".join)
def test_help_imports_no_heavy_library(words: list[str]) -> None:
    code = f"sys.argv = ['fxprune', *{words}]\nfrom fxprune.cli import main\nmain()"
    assert loaded_after(code) == set()


@pytest.mark.parametrize("line", ["fxprune com", "fxprune compile --criterion ma", "fxprune export --format "])
def test_completion_imports_no_heavy_library(line: str) -> None:
    code = "sys.argv = ['fxprune']\nfrom fxprune.cli import main\nmain()"
    shell = {"_FXPRUNE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    assert loaded_after(code, **shell) == set()


def test_an_import_draws_no_random_numbers() -> None:
    code = (
        "import random, sys, fxprune; random.seed(0); fxprune.compile; sys.exit(random.random() != 0.8444218515250481)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=120).returncode == 0


def test_the_package_imports_what_is_asked_for() -> None:
    assert loaded_after("import fxprune") == set()
    assert loaded_after("from fxprune.errors import BudgetError") == set()
    assert "torch" in loaded_after("from fxprune import compile")


def test_every_name_is_found() -> None:
    assert dir(fxprune) == sorted(fxprune.__all__)
    for name in fxprune.__all__:
        assert getattr(fxprune, name).__module__.startswith("fxprune.")
    assert fxprune.errors.FxpruneError is fxprune.FxpruneError is FxpruneError
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = fxprune.compil
    with pytest.raises(ImportError):
        exec("from fxprune import compil")


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.iter_modules(fxprune.__path__) if m.name != "__main__"))
def test_every_part_can_be_imported_first(name: str) -> None:
    code = f"import fxprune.{name}; print('IMPORTED')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert "IMPORTED" in found.stdout, found.stderr


def test_completions_are_what_there_is() -> None:
    assert list(table()["criterion"].metadata["words"].choices) == ["auto", "zeros", *known_criteria()]
    assert list(options.FORMATS) == list(FORMATS)
    assert list(options.RUNTIMES) == list(RUNTIMES)
    assert list(options.RECOVERIES) == known_recoveries()
    assert table()["budget"].metadata["words"].choices == BUDGETS
    assert options.complete(tuple(known_criteria()))("ma") == ["magnitude"]


def test_a_module_is_found_under_the_name_that_it_had() -> None:
    code = "\n".join(
        (
            "import inspect, sys, fxprune",
            "inspect.getmodule(inspect.currentframe())",  # asks every module for its file
            "assert 'torch' not in sys.modules",
            "from fxprune.timing import measure_latency as old",
            "import fxprune.timing, fxprune.saving.timing as new",
            "assert old is new.measure_latency is fxprune.timing.measure_latency",
            "print('FOUND')",
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "FOUND" in found.stdout, found.stderr
