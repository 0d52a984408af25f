"""One task for many models, with a progress bar; a sweep that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.harness.processes import Outcome, Task, run_in_process
from benchmarks.harness.tables import ResumableTable

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
    """

    task: Task
    to_row: ToRow
    limit_seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    memory_gib: float | None = None

    def run(self, models: Sequence[str], table: ResumableTable, *, again: bool = False) -> None:
        """Measure the models that ``table`` has no row of (``again``: and those whose row tells of a failure)."""
        waiting = [name for name in models if name not in table.rows or (again and table.rows[name].get("failure"))]
        console = Console(stderr=True)
        with _progress(console) as progress:
            bar = progress.add_task("", total=len(models), completed=len(models) - len(waiting))
            for name in waiting:
                progress.update(bar, description=name)
                outcome = run_in_process(
                    self.task, {"model": name, **self.arguments}, self.limit_seconds, self.memory_gib
                )
                table.add({table.columns[0]: name, **self.to_row(outcome)})
                progress.advance(bar)
                if outcome.failure:
                    console.print(f"{name}: {outcome.failure}", style="yellow", markup=False, highlight=False)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console)
