"""Processes that are killed in the middle of something, at a line or by the clock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import pytest
import torch

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

Run = Callable[[Callable[[], Any]], int]


def in_child(action: Callable[[], Any]) -> int:
    """Run in a forked process; the exit status, negative for the signal that killed it.

    Raises:
        AssertionError: the action raised, with its traceback.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        raised = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not raised, f"the forked process raised:\n{raised}"
    return status


def in_fresh_process(action: Callable[[], Any]) -> int:
    """The same in a process that has imported torch and run nothing: threads of torch do not survive a fork.

    ``action`` has to be one that can be pickled.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distillation.test_killed"])  # imported once, not in every process
    reading, writing = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(action, writing))
    child.start()
    writing.close()
    try:
        raised = reading.recv()
    except EOFError:  # it was killed
        raised = ""
    child.join()
    assert not raised, f"the other process raised:\n{raised}"
    return int(child.exitcode)


def _tell(action: Callable[[], Any], writing: Connection) -> None:
    torch.set_num_threads(1)
    try:
        action()
    except BaseException:
        writing.send(traceback.format_exc())
        raise
    writing.send("")


def killed_after(lines: int, watched: tuple[str, ...], action: Callable[[], Any], run: Run = in_child) -> int:
    """Run in another process that kills itself after so many lines of the ``watched`` files."""
    return run(_Killed(lines, watched, action))


@dataclass
class _Killed:
    """An action that ends its process after so many lines."""

    left: int
    watched: tuple[str, ...]
    action: Callable[[], Any]

    def __call__(self) -> None:
        sys.settrace(self._trace)
        self.action()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(self.watched):
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace
