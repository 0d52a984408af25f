"""The line of the user's source that an op comes from."""

from __future__ import annotations

import contextlib
import os
import sys
import types

import torch

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_HIDDEN = (os.path.dirname(torch.__file__) + os.sep, _PACKAGE, contextlib.__file__)
# Where the pipeline begins: what called it is no line of a forward.
_OUTERMOST = _PACKAGE + "pipeline.py"


def user_frame() -> types.FrameType | None:
    """The innermost frame of a forward that is neither torch's nor this package's."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and is_hidden(frame):
        frame = None if frame.f_code.co_filename == _OUTERMOST else frame.f_back
    return frame


def is_hidden(frame: types.FrameType) -> bool:
    """Whether a frame is torch's or this package's."""
    return frame.f_code.co_filename.startswith(_HIDDEN)


def in_custom_function() -> bool:
    """Whether the forward of a ``torch.autograd.Function`` is running, whose backward no graph would keep."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # Its context, of a class that autograd derives for each function, is the first argument.
        if code.co_name == "forward" and code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, torch.autograd.function.FunctionCtx):
                return True
        frame = frame.f_back
    return False


def packs_saved_tensors() -> bool:
    """Whether hooks of the user's own are called with what is saved for the backward pass; torch's change no values."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    code = getattr(hooks[0], "__code__", None) if hooks else None
    return code is not None and not code.co_filename.startswith(_HIDDEN)


def source_line() -> str:
    """``file.py:line`` of that frame: the file's name and its folder, never a machine's path."""
    frame = user_frame()
    return "" if frame is None else short_location(frame.f_code.co_filename, frame.f_lineno)


def short_location(filename: str, line: int) -> str:
    """The last two parts of a path with a line number."""
    parts = filename.replace(os.sep, "/").split("/")
    return f"{'/'.join(parts[-2:])}:{line}"
