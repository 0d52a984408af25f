"""What happens around passes: progress on a terminal, seconds, random numbers, garbage."""

from __future__ import annotations

import gc
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table

T = TypeVar("T")


class Steps:
    """Names the running pass on standard error (only where that is a terminal) and keeps the seconds of each."""

    def __init__(self, show: bool | None = None) -> None:
        self.seconds: dict[str, float] = {}
        visible = sys.stderr.isatty() if show is None else show
        self._status: Status | None = Console(stderr=True).status("") if visible else None

    def __enter__(self) -> Steps:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run a pass under its name."""
        if self._status is not None:
            done = "".join(f"{past} {seconds:.2f} s, " for past, seconds in self.seconds.items())
            self._status.update(f"{done}{name} ...")
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def counted(self, name: str, items: Iterable[T], total: int | None, labels: Sequence[str] = ()) -> Iterator[T]:
        """The items one by one, with a bar or a count on a terminal; ``labels`` say what each is, in order."""
        self._show_count(name, 0, total, labels)
        for done, item in enumerate(items, 1):
            yield item
            self._show_count(name, done, total, labels)

    def _show_count(self, name: str, done: int, total: int | None, labels: Sequence[str]) -> None:
        if self._status is not None:
            row = Table.grid(padding=(0, 1))
            count = f"{done} of {total} done" if total else str(done)
            row.add_row(name, ProgressBar(total, done, width=30) if total else "", count, *labels[done : done + 1])
            self._status.update(row)


@contextmanager
def random_state_kept(devices: Iterable[int] = ()) -> Iterator[None]:
    """Restore the random generators of Python, numpy and torch at the end; of these, also those of CUDA devices."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextmanager
def paused_garbage_collection() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Pause automatic garbage collection. The context manager that is given allows it for objects made inside alone."""
    collects = gc.isenabled()

    @contextmanager
    def collecting() -> Iterator[None]:
        freezes = collects and not gc.get_freeze_count()
        if freezes:
            gc.freeze()
        if collects:
            gc.enable()
        try:
            yield
        finally:
            gc.disable()
            if freezes:
                gc.unfreeze()

    gc.disable()
    try:
        yield collecting
    finally:
        if collects:
            gc.enable()


def name_seed(name: str) -> int:
    """A number of 32 bits for any name, the same in every process."""
    return zlib.crc32(name.encode(errors="surrogatepass"))
