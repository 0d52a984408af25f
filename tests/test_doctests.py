"""The worked examples in docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import fxprune

PACKAGES = [f"fxprune.{m.name}" for m in pkgutil.iter_modules(fxprune.__path__) if m.ispkg]
TAUGHT = [*PACKAGES, "fxprune.axes.expressions", "fxprune.axes.solver", "fxprune.analysis.listing"]
MODULES = sorted(m.name for m in pkgutil.walk_packages(fxprune.__path__, "fxprune.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted > 0 or name not in TAUGHT
