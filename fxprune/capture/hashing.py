"""Who asks for the hash of a size: a table, whose answer hangs on it, or a cache, which calls the function behind it.

A table that does not hold the size gives its answer without a comparison that could be seen, so its hash is a decision.
``functools.lru_cache`` hashes its arguments, too, and then runs the function on them, or gives what it gave before.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import types
from typing import Any

__all__ = ["asked_by_a_cache"]


def asked_by_a_cache(frame: types.FrameType) -> bool:
    """Whether what a frame does now is a call of a function with an ``lru_cache``; False where that cannot be told."""
    call = _expression(frame)
    if not isinstance(call, ast.Call):
        return False
    return hasattr(_value(call.func, frame), "cache_info")


def _expression(frame: types.FrameType) -> ast.AST | None:
    """The expression that a frame is computing, read from its source."""
    positions = getattr(frame.f_code, "co_positions", None)  # since Python 3.11
    if positions is None:
        return None
    first, last, start, end = list(positions())[frame.f_lasti // 2]
    if None in (first, last, start, end):
        return None
    lines = [linecache.getline(frame.f_code.co_filename, n, frame.f_globals).encode() for n in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        return ast.parse(b"".join(lines).decode().strip(), mode="eval").body
    except SyntaxError:
        return None


def _value(expression: ast.AST, frame: types.FrameType) -> Any:
    """What a name, or an attribute of one, stands for in a frame; None where that would take running code."""
    if isinstance(expression, ast.Name):
        scopes = (frame.f_locals, frame.f_globals, vars(builtins))
        return next((scope[expression.id] for scope in scopes if expression.id in scope), None)
    if isinstance(expression, ast.Attribute):
        return getattr(_value(expression.value, frame), expression.attr, None)
    return None
