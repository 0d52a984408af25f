"""Watches what a piece of code makes the interpreter do: run source, import, write files, start processes, connect."""

from __future__ import annotations

import ast
import builtins
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import sympy
import torch
from torch.fx.node import _get_qualified_name

import fxprune
from fxprune.saving import targets

# Code that imports something fixed when it first runs: Python's own, torch's and what torch is made of.
_LAZY = tuple(str(Path(module.__file__ or "").parent) for module in (os, torch, numpy, sympy))
_OURS = str(Path(fxprune.__file__).parent)
_NEVER = (
    "subprocess. os.system os.exec os.posix_spawn os.spawn os.fork os.startfile pty. ctypes. socket. http. urllib. "
    "os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.chmod os.chown os.truncate os.putenv os.unsetenv "
    "os.kill shutil. pickle. builtins.input code.__new__ function.__new__ webbrowser. tempfile. sqlite3. sys.addaudit"
).split()
_NAMEDTUPLE = re.compile(r"lambda _cls, [\w, ]*: _tuple_new\(_cls, \([\w, ]*\)\)")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_seen: list[str] | None = None
_installed = False
_looking = False


@contextmanager
def audited() -> Iterator[list[str]]:
    """The list of everything done inside that data must not do; code that tries it gets an exception as well."""
    global _seen, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _seen = found = list[str]()
    try:
        yield found
    finally:
        _seen = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    global _looking
    if _seen is None or _looking:
        return
    _looking = True  # to look parses source, which is an event too
    try:
        wrong = _is_wrong(event, args)
    finally:
        _looking = False
    if wrong:
        _seen.append(f"{event} {args!r:.200}")
        raise RuntimeError(f"data made the interpreter do this: {event} {args!r:.200}")


def _is_wrong(event: str, args: tuple[Any, ...]) -> bool:
    if event == "import":
        return not _importing() and not _from_lazy_code()
    if event == "compile":
        harmless = _importing() or _only_parsed() or _NAMEDTUPLE.fullmatch(_text(args[0]))
        return not (harmless or _is_forward(args[0], args[1]))
    if event == "exec":
        name = args[0].co_filename
        return not (name.startswith("<eval_with_key>") or _importing() or _from_namedtuple())
    if event == "open":
        return bool((args[2] or 0) & _WRITING) if isinstance(args[2], int) else "w" in str(args[1])
    return event.startswith(tuple(_NEVER)) and not _importing()


def _text(source: Any) -> str:
    return source.decode("utf-8", "replace") if isinstance(source, bytes) else str(source)


def _frames() -> Iterator[Any]:
    frame: Any = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _importing() -> bool:
    """Whether a module is being imported; which one, its own event has told."""
    return any(frame.f_code.co_filename.startswith("<frozen importlib") for frame in _frames())


def _from_lazy_code() -> bool:
    caller = next(frame.f_code.co_filename for frame in _frames() if frame.f_code.co_filename != __file__)
    return caller.startswith(_LAZY) and "importlib" not in caller and not caller.startswith(_OURS)


def _only_parsed() -> bool:
    """Whether the source becomes a tree and no code: tracebacks do that with the lines that they show."""
    caller = next(frame for frame in _frames() if frame.f_code.co_filename != __file__)
    return caller.f_globals.get("__name__") == "ast" and caller.f_code.co_name == "parse"


def _from_namedtuple() -> bool:
    return any(f.f_code.co_name == "namedtuple" and f.f_globals.get("__name__") == "collections" for f in _frames())


# -- the source that torch.fx prints -----------------------------------------------------------------------------------

_STATEMENTS = (ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr, ast.Pass)
_EXPRESSIONS = (ast.Call, ast.keyword, ast.Name, ast.Attribute, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Slice)
_OPERATIONS = (ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Compare, ast.AugAssign, ast.Starred, ast.Load, ast.Store)
_SIGNS = (ast.operator, ast.unaryop, ast.cmpop)
_PRINTED = (ast.Module, *_STATEMENTS, *_EXPRESSIONS, *_OPERATIONS, *_SIGNS)
_KINDS = (torch.dtype, torch.layout, torch.memory_format)
_CONSTANTS = {f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, _KINDS)}
_ATTRIBUTES = targets._ATTRIBUTES | targets._NUMBER_ATTRIBUTES


def _is_forward(source: Any, filename: Any) -> bool:
    """Whether this is one forward as torch.fx prints it, which calls nothing but what a saved graph may call."""
    if not str(filename).startswith("<eval_with_key>"):
        return False
    body = _text(source)
    tree = ast.parse(body)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    return len(functions) == len(tree.body) == 1 and all(_is_printed(node) for node in ast.walk(tree))


def _is_printed(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _may_be_called(node)
    if isinstance(node, ast.Attribute):
        dotted = ast.unparse(node)
        names, beginnings = _printed_names()
        known = node.attr in _ATTRIBUTES or dotted in names or dotted in beginnings or dotted in _CONSTANTS
        return dotted.startswith(("self.", "getattr(self")) or known or _is_method(node.attr)
    if isinstance(node, ast.Name):
        return not hasattr(builtins, node.id) or node.id in (*targets.CALLABLE_BUILTINS, "Ellipsis", "input", "print")
    return isinstance(node, _PRINTED)


def _may_be_called(node: ast.Call) -> bool:
    name = ast.unparse(node.func)
    if isinstance(node.func, ast.Name):
        if name == "getattr":
            return isinstance(node.args[1], ast.Constant) and not str(node.args[1].value).startswith("_")
        return name not in dir(builtins) or name in targets.CALLABLE_BUILTINS
    return (
        name in _printed_names()[0]
        or name.startswith(("self.", "getattr(self"))
        or (isinstance(node.func, ast.Attribute) and _is_method(node.func.attr))
    )


@cache
def _printed_names() -> tuple[set[str], set[str]]:
    """Dotted names under which torch.fx prints what a graph may call, and the beginnings of these."""
    names = {_get_qualified_name(function) for function in targets._names_of_functions() if function is not getattr}
    parts = [name.split(".") for name in names]
    return names, {".".join(part[:i]) for part in parts for i in range(1, len(part))}


def _is_method(name: str) -> bool:
    try:
        targets.check_method(name)
    except Exception:
        return False
    return True
