"""What holds networks back: the pinned widths of weights that lose little when 40 % of every free group goes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

import fxprune
from benchmarks.coverage import CHANNEL_RATIO, layer_weights, shares_left, sizes_left
from benchmarks.networks import find_network
from benchmarks.tables import Cells, markdown_table, write_page
from fxprune.analysis.groups import PinnedWidth

_IDEAL = (1 - CHANNEL_RATIO) ** 2
_COLUMNS = ("model", "share_left", "share_left_all", "weights", "shape", "above", "pinned dims", "why")

_NOTE = """What was measured: the pinned widths that keep the most weights when {ratio:.0%} of every group that is not
pinned goes.

To repeat it: `python -m benchmarks.pins LIBRARY:NAME ...`.

How to read it: `share_left_all` is the share of all layer weights that stays, `share_left` the same without the layers
at the network's input and output. `above`: by how much the named weights raise `share_left_all` above {ideal:.2f}.
Weights of one shape with the same pins are one row."""


def main(
    models: Annotated[list[str], typer.Argument(help="LIBRARY:NAME.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("benchmarks/results/pins.md"),
    weights: Annotated[int, typer.Option(help="Rows of a network.")] = 2,
) -> None:
    """Write a table of the pins that cost the most."""
    rows = [row for name in track(models) for row in _rows(name, weights)]
    write_page(out, "Pins", _NOTE.format(ideal=_IDEAL, ratio=CHANNEL_RATIO), markdown_table(_COLUMNS, rows))


def _rows(name: str, count: int) -> Iterator[Cells]:
    library, _, model = name.partition(":")
    network = find_network(library, model, meta=library == "timm")
    plan = fxprune.plan(network.model, network.sample, CHANNEL_RATIO, budget="channels", scope="uniform")
    graph = fxprune.analyze(network.model, network.sample)
    shapes = layer_weights(graph)
    total = sum(map(math.prod, shapes.values()))
    above: dict[tuple[str, str, str], float] = defaultdict(float)
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for tensor, shape in shapes.items():
        pinned = [p for p in graph.pinned if p.tensor == tensor]
        key = "x".join(map(str, shape)), ", ".join(f"dim {p.dim}" for p in pinned), _reasons(pinned)
        above[key] += (math.prod(sizes_left(shape, plan.keep[tensor])) - _IDEAL * math.prod(shape)) / total
        names[key].append(tensor)
    shares = [f"{share:.3f}" for share in shares_left(graph, plan.keep).values()]
    worst = sorted((key for key in above if key[1]), key=lambda key: -above[key])[:count]
    for shape_text, dims, why in worst:
        key = (shape_text, dims, why)
        more = f" and {len(names[key]) - 1} more" if len(names[key]) > 1 else ""
        yield (model, *shares, names[key][0] + more, shape_text, f"{above[key]:.3f}", dims, why)


def _reasons(pinned: list[PinnedWidth]) -> str:
    return "; ".join(dict.fromkeys(p.reason for p in pinned))


if __name__ == "__main__":
    typer.run(main)
