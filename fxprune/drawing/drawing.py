"""What a picture of a network shows, as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx

from fxprune.axes.expressions import Axis, variables
from fxprune.groups import Group, PinnedWidth

__all__ = ["DrawableGraph", "DrawnNode", "draw_network"]


class DrawableGraph(Protocol):
    """What a picture asks of the channel graph."""

    captured: Any
    solver: Any

    @property
    def axes(self) -> Mapping[fx.Node, Any]:
        """The axes of every node's result."""
        ...

    @property
    def groups(self) -> tuple[Group, ...]:
        """The channel groups."""
        ...

    @property
    def pinned(self) -> tuple[PinnedWidth, ...]:
        """The widths that stay."""
        ...


@dataclass(frozen=True)
class DrawnNode:
    """One operation.

    Attributes:
        label: path of its module, or its name and the module that calls it.
        inputs: positions of the operations whose results it reads.
        groups: names of the channel groups that its result is made of.
        pin: the widths of its parameters that stay, with reasons; empty where there are none.
    """

    label: str
    inputs: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    pin: str = ""

    def as_list(self) -> list[Any]:
        """Compact JSON data."""
        return [self.label, list(self.inputs), list(self.groups), self.pin]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> DrawnNode:
        """Read what :meth:`as_list` wrote."""
        label, inputs, groups, pin = data
        return cls(label, tuple(inputs), tuple(groups), pin)


def draw_network(graph: DrawableGraph) -> tuple[DrawnNode, ...]:
    """Every operation on tensors in eval mode, in order; of opaque modules what was captured inside them."""
    groups = {group.variable: group.name for group in graph.groups}
    pins: dict[str, list[str]] = {}
    for pin in graph.pinned:
        pins.setdefault(pin.tensor.rpartition(".")[0], []).append(
            f"{pin.tensor} dim {pin.dim} ({pin.size}): {pin.reason}"
        )
    drawn: list[DrawnNode] = []
    for captured in (graph.captured, *graph.captured.islands):
        positions: dict[fx.Node, tuple[int, ...]] = {}
        for node in captured.graph.nodes:
            inputs = tuple(dict.fromkeys(p for argument in node.all_input_nodes for p in positions[argument]))
            if not _is_drawn(node):
                # What lies between two drawn operations, such as a size, hands on where it came from.
                positions[node] = inputs if node.op != "get_attr" else ()
                continue
            positions[node] = (len(drawn),)
            found = (
                groups[v]
                for a in _flat(graph.axes.get(node))
                for v in variables(graph.solver.resolve(a))
                if v in groups
            )
            pin_text = "; ".join(pins.get(str(node.target), [])) if node.op == "call_module" else ""
            drawn.append(DrawnNode(_label(node), inputs, tuple(dict.fromkeys(found)), pin_text))
    return tuple(drawn)


def _is_drawn(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    return node.op != "get_attr" and any(isinstance(v, torch.Tensor) for v in _values(node.meta.get("val")))


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _values(item)
    else:
        yield value


def _flat(axes: Any) -> Iterable[Axis]:
    if isinstance(axes, (list, tuple)):
        for item in axes:
            yield from _flat(item)
    elif isinstance(axes, dict):
        yield from _flat(list(axes.values()))
    elif isinstance(axes, Axis):
        yield axes


def _label(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    if node.op in ("placeholder", "output"):
        return f"{'input ' if node.op == 'placeholder' else ''}{node.target}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    path = node.meta.get("module", "")
    return f"{name} in {path}" if path else str(name)
