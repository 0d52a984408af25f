"""One deliberate fault: a piece of one function's source, and what is written in its place."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        place: ``module:function`` below the package, such as ``axes.solver:Solver.unify``.
        old: text that the function's source holds.
        new: what stands there in the faulty function.
        cases: beginnings of the names of the corpus networks that the function works on, separated by ``|``.
    """

    place: str
    old: str
    new: str
    cases: str

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.old.split())!r} -> {' '.join(self.new.split())!r}"

    def function(self) -> FunctionType:
        """The function that is changed."""
        module, _, name = self.place.partition(":")
        found: Any = operator.attrgetter(name)(importlib.import_module(f"fxprune.{module}"))
        found = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))
        assert isinstance(found, FunctionType), self.place
        return found

    def faulty_code(self) -> Any:
        """The code object of the changed source."""
        function = self.function()
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) < 1:
            raise ValueError(f"{self}: the function does not hold this text")
        tree = ast.parse(source.replace(self.old, self.new, 1))
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.decorator_list = []
        ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
        made: dict[str, Any] = {}
        exec(compile(tree, function.__code__.co_filename, "exec"), dict(function.__globals__), made)
        return made[definition.name].__code__

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The function is faulty inside."""
        function = self.function()
        right = function.__code__
        function.__code__ = self.faulty_code()
        try:
            yield
        finally:
            function.__code__ = right
