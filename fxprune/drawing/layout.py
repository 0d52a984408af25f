"""Places for the operations of a picture: one row a step, parallel branches side by side."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.drawing.drawing import DrawnNode

__all__ = ["places"]

Place = tuple[int, float]


def places(nodes: Sequence[DrawnNode]) -> list[Place]:
    """Row and column of every operation; below all of its inputs, near the middle of their columns."""
    rows: list[int] = []
    columns: list[float] = []
    taken: dict[int, set[float]] = {}
    for node in nodes:
        row = 1 + max((rows[i] for i in node.inputs), default=-1)
        wanted = sum(columns[i] for i in node.inputs) / len(node.inputs) if node.inputs else 0.0
        column = _nearest_free(round(wanted), taken.setdefault(row, set()))
        taken[row].add(column)
        rows.append(row)
        columns.append(column)
    return list(zip(rows, columns, strict=True))


def _nearest_free(wanted: int, taken: set[float]) -> float:
    step = 0
    while True:
        for column in (wanted + step, wanted - step):
            if column not in taken:
                return float(column)
        step += 1
