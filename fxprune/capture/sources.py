"""The user's source that runs: the line that an op comes from, and the expression that asks for a number."""

from __future__ import annotations

import ast
import builtins
import contextlib
import dis
import functools
import inspect
import linecache
import logging
import os
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_HIDDEN = (os.path.dirname(torch.__file__) + os.sep, _PACKAGE, contextlib.__file__)
# Where the pipeline begins: what called it is no line of a forward.
_OUTERMOST = _PACKAGE + "pipeline.py"
_BEGINS = ("_forward", os.path.join(os.path.dirname(__file__), "capturing.py"))
# Code whose frames may go on under another caller.
_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# Ops of code that catches errors, in the bytecode of one Python or another.
_CATCHES = {dis.opmap[name] for name in ("PUSH_EXC_INFO", "JUMP_IF_NOT_EXC_MATCH") if name in dis.opmap}


def user_frame() -> types.FrameType | None:
    """The innermost frame of a forward that is neither torch's nor this package's."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and _is_hidden_file(frame.f_code.co_filename):
        frame = None if frame.f_code.co_filename == _OUTERMOST else frame.f_back
    return frame


def user_frames() -> Iterator[types.FrameType]:
    """The frames of a forward that are neither torch's nor this package's, from the innermost on."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_name, frame.f_code.co_filename) != _BEGINS:
        if not is_hidden(frame):
            yield frame
        frame = frame.f_back


def is_hidden(frame: types.FrameType) -> bool:
    """Whether a frame is torch's or this package's."""
    return _is_hidden_file(frame.f_code.co_filename)


@functools.lru_cache(maxsize=4096)
def _is_hidden_file(name: str) -> bool:
    return name.startswith(_HIDDEN)


def is_tried(known: dict[types.FrameType, int]) -> bool:
    """Whether the forward would catch an error of the present call and go on.

    ``known``: the frames around the call before for which it would not, from the outermost on, each with the
    instruction that it was at; it is brought up to date. Those around a frame stay where they are while that one runs.
    """
    frame: types.FrameType | None = sys._getframe(1)
    inner = []
    while frame is not None and known.get(frame) != frame.f_lasti:
        code = frame.f_code
        # Finding a file name is quick, finding a code object is not: its hash is computed anew each time.
        if _is_hidden_file(code.co_filename):
            if code.co_name == _BEGINS[0] and code.co_filename == _BEGINS[1]:
                frame = None
                break
        elif any(first <= frame.f_lineno <= last for first, last in _tried(code)):
            return True
        if not code.co_flags & _RESUMED:
            inner.append(frame)
        frame = frame.f_back
    while known and next(reversed(known)) is not frame:
        known.popitem()
    known.update((frame, frame.f_lasti) for frame in reversed(inner))
    return False


@functools.lru_cache(maxsize=4096)
def _tried(code: types.CodeType) -> tuple[tuple[int, int], ...]:
    """The lines of a function that stand in a ``try`` with a handler that does not raise in the end."""
    if _CATCHES.isdisjoint(code.co_code[::2]):
        return ()
    lines = {line for _, _, line in code.co_lines() if line is not None}
    spans = _tries_in("".join(linecache.getlines(code.co_filename)))
    if spans is None:  # no source to look at
        return ((min(lines), max(lines)),)
    return tuple(span for span in spans if span[0] in lines)


@functools.lru_cache(maxsize=64)
def _tries_in(source: str) -> list[tuple[int, int]] | None:
    try:
        tries = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Try)] if source else None
    except SyntaxError:
        return None
    if tries is None:
        return None
    going_on = [node for node in tries if any(not isinstance(h.body[-1], ast.Raise) for h in node.handlers)]
    return [(node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno) for node in going_on]


def has_saved_tensor_hooks() -> bool:
    """Whether the user's own hooks see tensors saved for the backward pass; torch's hooks change no values."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    code = getattr(hooks[0], "__code__", None) if hooks else None
    return code is not None and not code.co_filename.startswith(_HIDDEN)


def source_line() -> str:
    """``file.py:line`` of that frame: the file's name and its folder, never a machine's path."""
    frame = user_frame()
    return "" if frame is None else short_location(frame.f_code.co_filename, frame.f_lineno)


@functools.lru_cache(maxsize=4096)
def short_location(filename: str, line: int) -> str:
    """The last two parts of a path with a line number."""
    parts = filename.replace(os.sep, "/").split("/")
    return f"{'/'.join(parts[-2:])}:{line}"


Span = tuple[tuple[int, int], tuple[int, int]]
# A frame by its identity, and the span of a call in it.
Site = tuple[int, Span]


def call_that_reads(attribute: str) -> Site | None:
    """The only call that gets the attribute which the user's frame is reading; None if that is unclear."""
    frame = user_frame()
    span = None if frame is None else _span(frame.f_code, frame.f_lasti)
    if frame is None or span is None:
        return None
    for call in _calls(frame):
        for given in (*call.args, *(keyword.value for keyword in call.keywords)):
            if isinstance(given, ast.Attribute) and given.attr == attribute and _span_of(given) == span:
                return id(frame), _span_of(call)
    return None


def current_call() -> Site | None:
    """The call that user code is making now, without torch's code in between."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    span = None if frame is None or is_hidden(frame) else _span(frame.f_code, frame.f_lasti)
    return None if span is None else (id(frame), span)


# What keeps an answer before a condition is complete, or holds code that runs again.
_KEEPS = (ast.BoolOp, ast.IfExp, ast.Lambda, ast.NamedExpr, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def condition_asked(frame: types.FrameType) -> int | None:
    """The line of the one condition of an ``if`` statement that a frame is at; None where the answer may go elsewhere.

    Before Python 3.11 only the line is known: then no other statement may stand in it.
    """
    span = None if sys.version_info < (3, 11) else _span(frame.f_code, frame.f_lasti)
    for node in _nodes(frame) if not frame.f_code.co_flags & _RESUMED else []:
        if not isinstance(node, ast.If):
            continue
        (first, _), (last, _) = _span_of(node.test)
        # The jump itself has the span of the whole statement.
        fits = span == _span_of(node) or _covers(node.test, span) if span else node.body[0].lineno > last
        if fits and first <= frame.f_lineno <= last:
            parts = list(ast.walk(node.test))
            once = sum(len(part.ops) for part in parts if isinstance(part, ast.Compare)) <= 1
            return first if once and not any(isinstance(part, _KEEPS) for part in parts) else None
    return None


def instruction(frame: types.FrameType) -> tuple[str, int]:
    """The name and place of the instruction that a frame is at."""
    code, at = frame.f_code.co_code, frame.f_lasti
    while dis.opname[code[at]] == "CACHE":
        at -= 2
    return dis.opname[code[at]], at


def begins_loop(frame: types.FrameType, method: str) -> bool:
    """Whether a frame is just at what a ``for`` statement goes through: a value, or a call of ``method``."""
    span = None if sys.version_info < (3, 11) else _span(frame.f_code, frame.f_lasti)
    begins = instruction(frame)[0] == "GET_ITER"
    for node in _nodes(frame) if span and not frame.f_code.co_flags & _RESUMED else []:
        if isinstance(node, ast.For) and (span == _span_of(node.iter) or (begins and span == _span_of(node))):
            return begins or (isinstance(node.iter, ast.Call) and _name_of(node.iter.func) == method)
    return False


# -- what an expression is for ----------------------------------------------------------------------------------------

# What takes a message and gives nothing back, and where among the arguments the message begins.
_MESSAGES: dict[Any, int] = {torch._assert: 1, warnings.warn: 0, print: 0}
_LOGS = frozenset("critical debug error exception info log warn warning warning_advice warning_once".split())
_NAMES = _LOGS | {function.__name__ for function in _MESSAGES}
# What a message may consist of, calls of these builtins and of methods of literal text aside.
_MAKES_TEXT = (str, repr, format, len, type, tuple, list)
_PARTS: tuple[type[ast.AST], ...] = (ast.JoinedStr, ast.FormattedValue, ast.Constant, ast.Name, ast.Attribute)
_PARTS += (ast.UnaryOp, ast.Subscript, ast.Tuple, ast.List, ast.Starred, ast.BinOp, ast.Call)
_PARTS += (ast.expr_context, ast.operator, ast.unaryop)


def is_called(frame: types.FrameType) -> bool:
    """Whether what a frame is reading is then called; False if that is unclear."""
    span = _span(frame.f_code, frame.f_lasti)
    return any(_span_of(call.func) == span for call in _calls(frame))


def is_in_cached_call(frame: types.FrameType) -> bool:
    """Whether a frame is calling a function with an ``lru_cache``; False if that is unclear."""
    span = _span(frame.f_code, frame.f_lasti)
    call = next((node for node in _calls(frame) if _span_of(node) == span), None)
    return call is not None and hasattr(_value(call.func, frame), "cache_info")


def is_of_a_message(frame: types.FrameType) -> bool:
    """Whether a frame is only making the text of a warning, a log, a print or an assertion's message.

    Before Python 3.11 only the line is known: then nothing else in that line may make a text.
    """
    calls = [call for call in _calls(frame) if _name_of(call.func) in _NAMES]
    if not calls:
        return False
    span = _span(frame.f_code, frame.f_lasti)
    if span is None:
        return _is_line_of_messages(calls, frame)
    return any(
        _covers(text, span) or _span_of(call) == span
        for call in calls
        if _covers(call, span)
        for text in _texts(call, frame)
    )


def _is_line_of_messages(calls: list[ast.Call], frame: types.FrameType) -> bool:
    texts = [(call, text) for call in calls for text in _texts(call, frame)]
    inside = {id(node) for call, text in texts for node in (call, *ast.walk(text))}
    kinds = (ast.JoinedStr, ast.Call, ast.BinOp, ast.AugAssign)
    here = [id(n) for n in _nodes(frame) if isinstance(n, kinds) and n.lineno == frame.f_lineno]
    return bool(here) and inside.issuperset(here)


def _texts(call: ast.Call, frame: types.FrameType) -> Iterator[ast.expr]:
    """The arguments that are the message of a call which does nothing else with them."""
    function = _value(call.func, frame)
    holder = _value(call.func.value, frame) if isinstance(call.func, ast.Attribute) else None
    is_log = isinstance(holder, (logging.Logger, logging.LoggerAdapter)) and _name_of(call.func) in _LOGS
    first = 0 if is_log else next((place for known, place in _MESSAGES.items() if known is function), None)
    if first is not None and not any(k.arg in (None, "file") for k in call.keywords):
        given = [*call.args[first:], *(k.value for k in call.keywords if k.arg in ("message", "msg"))]
        yield from (argument for argument in given if _only_makes_text(argument, frame))


def _only_makes_text(part: ast.AST, frame: types.FrameType) -> bool:
    """Whether an expression passes no part of itself to code that could keep it."""
    if not isinstance(part, _PARTS) or not all(_only_makes_text(child, frame) for child in _children(part)):
        return False
    if isinstance(part, ast.Call):
        by_literal = isinstance(part.func, ast.Attribute) and _is_literal(part.func.value)
        return not part.keywords and (by_literal or any(_value(part.func, frame) is known for known in _MAKES_TEXT))
    if isinstance(part, ast.FormattedValue):
        return part.format_spec is None or all(isinstance(n, ast.Constant) for n in _children(part.format_spec))
    makes_text = any(isinstance(node, (ast.JoinedStr, ast.Call)) for node in ast.walk(part))
    if isinstance(part, ast.BinOp) and makes_text:
        return _is_literal(part.left) and (isinstance(part.op, ast.Mod) or _is_text(part.right))
    return not (isinstance(part, ast.Subscript) and makes_text)


def _children(part: ast.AST) -> list[ast.AST]:
    return list(ast.iter_child_nodes(part))


def _is_literal(part: ast.AST) -> bool:
    return isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))


def _is_text(part: ast.AST) -> bool:
    return _is_literal(part) or (
        isinstance(part, ast.Call) and _name_of(part.func) in ("str", "repr", "format", "join")
    )


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _value(expression: ast.AST, frame: types.FrameType) -> Any:
    """The value of a name or attribute in a frame; None where finding it would run code."""
    if isinstance(expression, ast.Name):
        scopes = (frame.f_locals, frame.f_globals, vars(builtins))
        return next((scope[expression.id] for scope in scopes if expression.id in scope), None)
    if isinstance(expression, ast.Attribute):
        return getattr(_value(expression.value, frame), expression.attr, None)
    return None


def _covers(outer: ast.AST, span: Span) -> bool:
    start, end = _span_of(outer)
    return start <= span[0] and span[1] <= end


def _span_of(node: Any) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


@functools.lru_cache(maxsize=8192)
def _span(code: types.CodeType, at: int) -> Span | None:
    """The first and last line and byte of an instruction's expression; None where unknown."""
    positions = getattr(code, "co_positions", None)  # since Python 3.11
    if positions is None:
        return _span_in_its_line(code, at)
    first, last, start, end = list(positions())[at // 2]
    return None if None in (first, last, start, end) else ((first, start), (last, end))


def _span_in_its_line(code: types.CodeType, at: int) -> Span | None:
    """Of a call or a formatted value before Python 3.11, which knows lines only.

    Those of a line run in the order in which they end. Not so in the expressions of ``_OUT_OF_ORDER``, and in what an
    assignment writes to: such lines are left alone.
    """
    name = dis.opname[code.co_code[at]]
    ahead, kind = ("CALL_", ast.Call) if name.startswith("CALL_") else ("FORMAT_VALUE", ast.FormattedValue)
    line = next((line for start, end, line in code.co_lines() if start <= at < end), None)
    inside = {i for start, end, number in code.co_lines() if number == line for i in range(start, end)}
    made = [i.offset for i in dis.get_instructions(code) if i.offset in inside and i.opname.startswith(ahead)]
    here = [node for node in _nodes_of(code) if node.lineno <= (line or 0) <= node.end_lineno]
    spans = sorted((_span_of(n) for n in here if isinstance(n, kind) and n.lineno == line), key=lambda span: span[1])
    written = [n for n in here if isinstance(getattr(n, "ctx", None), ast.Store)]
    unclear = any(isinstance(n, _OUT_OF_ORDER) for n in here) or any(
        isinstance(part, ast.Call) for n in written for part in ast.walk(n)
    )
    return spans[made.index(at)] if at in made and len(made) == len(spans) and not unclear else None


_OUT_OF_ORDER = (ast.IfExp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _calls(frame: types.FrameType) -> list[ast.Call]:
    return [node for node in _nodes(frame) if isinstance(node, ast.Call)]


def _nodes(frame: types.FrameType) -> list[Any]:
    """The expressions in the lines of a frame's code."""
    linecache.lazycache(frame.f_code.co_filename, frame.f_globals)
    return _nodes_of(frame.f_code)


@functools.lru_cache(maxsize=4096)
def _nodes_of(code: types.CodeType) -> list[Any]:
    lines = {line for _, _, line in code.co_lines() if line is not None}
    nodes = _nodes_in("".join(linecache.getlines(code.co_filename)))
    return [n for n in nodes if lines and min(lines) <= n.lineno <= max(lines)]


@functools.lru_cache(maxsize=64)
def _nodes_in(source: str) -> list[Any]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return []
    return [node for node in nodes if isinstance(node, (ast.expr, ast.AugAssign, ast.If, ast.For))]


def place_of(error: BaseException, path: str) -> str:
    """Where a module, whose path is empty for the model itself, could not be traced."""
    return f"cannot trace {path or 'the model'}{line_of(error)}"


def line_of(error: BaseException) -> str:
    """The last line of a model's own code that an error went through, as " at FILE:LINE"; "" if there is none."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_HIDDEN)]
    return f" at {short_location(lines[-1].filename, lines[-1].lineno or 0)}" if lines else ""
