"""A process for each network, with a time limit and a progress bar; and what a pruned network must still do."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.tables import ResumableTable
from fxprune.capture.samples import Sample

_MORE_ROWS = 4
_MORE_PIXELS = 32


def follows_batch(original: nn.Module, pruned: nn.Module, sample_input: Any) -> str:
    """ "yes" if both give outputs of equal shapes at a larger batch, "fixed" if the original refuses it, or why not."""
    sample = Sample.from_input(sample_input)
    rows = sample.batch_size
    return "fixed" if rows is None else _compare(original, pruned, lambda: sample.with_batch(rows + _MORE_ROWS))


def follows_resolution(original: nn.Module, pruned: nn.Module, sample_input: Any) -> str:
    """The same for images that are larger by 32 pixels in both directions; "fixed" too where there is no image."""
    sample = Sample.from_input(sample_input)
    images = [t for t in sample.tensors if t.ndim in (4, 5) and t.is_floating_point()]
    return _compare(original, pruned, lambda: sample.map(_enlarged)) if images else "fixed"


def _enlarged(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim not in (4, 5):
        return tensor
    *rest, height, width = tensor.shape
    return torch.randn(*rest, height + _MORE_PIXELS, width + _MORE_PIXELS).to(tensor)


def _compare(original: nn.Module, pruned: nn.Module, make: Callable[[], Sample]) -> str:
    sample = make()
    try:
        expected = output_shapes(original, sample)
    except Exception:  # whatever the original raises is its refusal
        return "fixed"
    try:
        found = output_shapes(pruned, sample)
    except Exception as error:
        return f"no: {failure_text(error)}"
    return "yes" if found == expected else f"no: output shapes {found} instead of {expected}"


@torch.no_grad()
def output_shapes(model: nn.Module, sample: Sample) -> list[tuple[int, ...]]:
    """The shapes of the tensors in the answer of ``model``."""
    leaves = pytree.tree_leaves(sample.call(model))
    return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]


class TrainingStepError(RuntimeError):
    """A network does not train: no gradient, or a value that is not finite."""


def train_one_step(model: nn.Module, sample_input: Any) -> int:
    """One step of SGD in train mode on a batch of two, with the mean square of all outputs as the loss.

    The model is left in eval mode, with the step taken.

    Returns:
        How many parameters had a gradient.

    Raises:
        TrainingStepError: the loss, a gradient or a parameter is not finite, or nothing has a gradient.
    """
    sample = _pair(Sample.from_input(sample_input))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = torch.stack([leaf.float().pow(2).mean() for leaf in _differentiable(sample.call(model))]).sum()
    torch.autograd.backward(loss)
    touched = {name: p for name, p in model.named_parameters() if p.grad is not None}
    if not touched:
        raise TrainingStepError("no parameter has a gradient")
    gradients = {f"the gradient of {name}": p.grad for name, p in touched.items() if p.grad is not None}
    _check_finite({"the loss": loss, **gradients})
    optimizer.step()
    _check_finite(touched)
    model.eval()
    return len(touched)


def _pair(sample: Sample) -> Sample:
    return sample.with_batch(2) if sample.batch_size is not None else sample


def _differentiable(outputs: Any) -> list[torch.Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if not leaves:
        raise TrainingStepError("no output depends on a parameter")
    return leaves


def _check_finite(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingStepError(f"{name} is not finite after one step")


_LENGTH = 300


def failure_text(error: BaseException) -> str:
    """The exception's type and the beginning of its message, on one line."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= _LENGTH else text[: _LENGTH - 3] + "..."


class TimeLimitReached(BaseException):
    """A call took longer than it was allowed to; as with KeyboardInterrupt, ``except Exception`` lets it pass."""


@contextmanager
def time_limit(seconds: float, *, of_processor: bool = False) -> Iterator[None]:
    """Interrupt the Python code of the body after so many seconds; a single call into C is waited for.

    ``of_processor``: whether the seconds are those of the process, which others that run beside it take none of.

    Raises:
        TimeLimitReached: the body was interrupted.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise TimeLimitReached(f"more than {seconds:g} s")

    timer, number = (signal.ITIMER_PROF, signal.SIGPROF) if of_processor else (signal.ITIMER_REAL, signal.SIGALRM)
    previous = signal.signal(number, interrupt)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, previous)


_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_memory() -> int:
    """The largest resident size so far, in bytes."""
    # A process inherits ru_maxrss from the one that started it, the high-water mark in /proc is its own.
    return _from_status("VmHWM") or _max_rss()


def resident_memory() -> int:
    """The resident size now, in bytes; the peak where the system does not tell."""
    return _from_status("VmRSS") or peak_memory()


def reset_peak_memory() -> bool:
    """Make :func:`peak_memory` start again from what is resident now; False where the system cannot."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def limit_memory(limit_bytes: int) -> None:
    """Let allocations beyond ``limit_bytes`` of data fail in this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _from_status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _max_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit_processor_time(seconds: float) -> None:
    """Interrupt this process after so many seconds of processor time, and end it where it does not stop soon.

    The time limit of other calls, which is in wall-clock seconds, is unchanged.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise TimeLimitReached(f"more than {seconds:g} s of processor time")

    signal.signal(signal.SIGXCPU, interrupt)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + _GRACE))


_GRACE = 10


def processor_time() -> float:
    """Seconds of processor time that this process has used, and its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run_request(request: Mapping[str, Any], errors: str) -> None:
    """Run the task of a request and write what it records, a JSON line each time; what it prints goes to ``errors``."""
    _redirect_output(errors)
    if request["processor_seconds"]:
        limit_processor_time(request["processor_seconds"])
    if request["gib"]:
        limit_memory(int(request["gib"] * 2**30))
    warnings.simplefilter("ignore")
    with Path(request["records"]).open("a", encoding="utf-8") as file:

        def record(**fields: Any) -> None:
            file.write(json.dumps({"fields": fields, "peak": peak_memory(), "processor": processor_time()}) + "\n")
            file.flush()

        module, _, name = request["task"].partition(":")
        try:
            getattr(importlib.import_module(module), name)(record, **request["arguments"])
        except (Exception, TimeLimitReached) as error:
            record(failure=failure_text(error))
        record()


def _redirect_output(errors: str) -> None:
    sink = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Libraries in C write to the descriptors themselves.
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)


Record = Callable[..., None]
"""``record(name=value, ...)``: JSON values that are kept even if the task fails or is stopped later."""

Task = Callable[..., None]
"""``task(record, **arguments)``, a function at the top level of a module."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        fields: everything it recorded.
        failure: empty, or why it did not come to its end.
        seconds: wall-clock time of the whole process, imports included.
        peak_mib: largest resident size at the last time it recorded something, in MiB.
        processor_seconds: processor time until then, without the imports that all processes share.
    """

    fields: dict[str, Any]
    failure: str
    seconds: float
    peak_mib: float
    processor_seconds: float


def run_in_process(
    task: Task,
    arguments: Mapping[str, Any],
    limit_seconds: float,
    memory_gib: float | None = None,
    processor_seconds: float | None = None,
) -> Outcome:
    """Run ``task(record, **arguments)`` in a fresh process and stop it after ``limit_seconds``.

    ``arguments`` are JSON values. With ``memory_gib``, allocations beyond that fail inside the process; with
    ``processor_seconds``, it is also stopped after so much processor time, whatever else the machine does.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fxprune-benchmark-") as folder:
        records, errors = Path(folder) / "records", Path(folder) / "errors"
        request = {"task": _import_path(task), "arguments": dict(arguments), "records": str(records)}
        request |= {"gib": memory_gib, "processor_seconds": processor_seconds}
        failure = _run(request, errors, limit_seconds)
        if failure is None:
            failure = _last_line(errors)
        fields, peak, used = _collected(records)
    failure = fields.pop("failure", "") or failure
    return Outcome(fields, failure, time.perf_counter() - started, peak / 2**20, used)


_SHARED = ["torch", "torchvision", "timm", "networkx"]


def share_imports(*modules: str) -> None:
    """Import these once, before the first process is forked, rather than in each; those not installed are left out."""
    _SHARED.extend(modules)


@cache
def _context() -> ForkServerContext:
    """Processes forked from one that has imported the heavy libraries, which take longer than many a measurement.

    It holds no threads and no caches of an earlier task. It imports fxprune only where :func:`share_imports` says so.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SHARED)
    return context


def _run(request: Mapping[str, Any], errors: Path, limit_seconds: float) -> str | None:
    """Why the process was stopped, "" if it ended well, None if it failed by itself."""
    process = _context().Process(target=run_request, args=(dict(request), str(errors)))
    process.start()
    process.join(limit_seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return f"more than {limit_seconds:g} s"
    code = process.exitcode or 0
    if code < 0:
        return f"stopped by signal {signal.Signals(-code).name}"
    return None if code else ""


def _import_path(task: Task) -> str:
    module = task.__module__
    if module == "__main__":
        specification = sys.modules["__main__"].__spec__
        assert specification is not None, "run the script with python -m"
        module = specification.name
    return f"{module}:{task.__name__}"


def _collected(records: Path) -> tuple[dict[str, Any], float, float]:
    fields: dict[str, Any] = {}
    peak = used = 0.0
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    for line in lines:
        entry = json.loads(line)
        fields.update(entry["fields"])
        peak, used = max(peak, float(entry["peak"])), float(entry["processor"])
    return fields, peak, used


def _last_line(errors: Path) -> str:
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it failed without a message"


ToRow = Callable[[Outcome], Mapping[str, object]]


@dataclass(frozen=True)
class Sweep:
    """What is done with every model.

    Attributes:
        task: called in a process of its own with ``model=NAME`` and ``arguments``.
        to_row: the cells of an outcome, but for the first one.
        limit_seconds: wall-clock time that a process may take.
        arguments: further arguments of the task, JSON values.
        memory_gib: memory that a process may allocate; None for all there is.
        processor_seconds: processor time that a process may take; None for as much as it gets.
    """

    task: Task
    to_row: ToRow
    limit_seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    memory_gib: float | None = None
    processor_seconds: float | None = None

    def run(self, models: Sequence[str], table: ResumableTable, *, again: bool = False) -> None:
        """Measure the models that ``table`` has no row of (``again``: and those whose row tells of a failure)."""
        waiting = [name for name in models if name not in table.rows or (again and table.rows[name].get("failure"))]
        console = Console(stderr=True)
        with _progress(console) as progress:
            bar = progress.add_task("", total=len(models), completed=len(models) - len(waiting))
            for name in waiting:
                progress.update(bar, description=name)
                arguments = {"model": name, **self.arguments}
                limits = (self.limit_seconds, self.memory_gib, self.processor_seconds)
                outcome = run_in_process(self.task, arguments, *limits)
                table.add({table.columns[0]: name, **self.to_row(outcome)})
                progress.advance(bar)
                if outcome.failure:
                    console.print(f"{name}: {outcome.failure}", style="yellow", markup=False, highlight=False)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console)
