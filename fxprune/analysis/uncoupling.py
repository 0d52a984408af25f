"""``couplings="drop"``: each layer that reads a shared stream selects its own channels.

A residual stream or a concatenation ties all layers that write it and read it. Here a selection, with a free width of
its own, goes between the stream and each convolution or linear layer that reads it; the stream keeps its width. Ops
between the stream and the layer that serve this layer alone (a pre-activation batch norm, its ReLU, a pool) come after
the selection and are cut with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.analysis.analyzer import Analyzer
from fxprune.axes.expressions import Axis, Product, variables
from fxprune.capture import Captured
from fxprune.errors import OptionError, check_choice
from fxprune.rules.call import Call, parameter_name
from fxprune.rules.ops import CONTRACTIONS, OWNS_MEMORY, is_written, writes_in_place
from fxprune.rules.picking import select_channels

COUPLINGS = ("keep", "drop")


@dataclass(frozen=True)
class _Place:
    """A place for a selection: between ``stream`` and its ``user``, on a dim of the stream, for a layer, ``reader``."""

    stream: fx.Node
    user: fx.Node
    dim: int
    reader: Call


def check_couplings(couplings: object) -> str:
    """The option as given. Raises OptionError: it is neither "keep" nor "drop"."""
    check_choice(OptionError, "couplings", couplings, COUPLINGS)
    return str(couplings)


def drop_couplings(captured: Captured, model: nn.Module) -> None:
    """Insert the selections into every graph of a capture, and their gates into its constants.

    A stream is a width that takes part in an addition of two activations or in a concatenation; an analysis of the
    unchanged graphs finds them. Each convolution or linear layer that reads one gets a selection, one for each weight.
    Parts inside opaque modules keep their couplings: the proof runs those modules as they are, without selections.
    """
    analyzer = Analyzer(captured, model)
    analyzer.run()
    uncoupler = _Uncoupler(analyzer)
    for part in (mode for specialization in (captured, *captured.specializations) for mode in specialization.modes()):
        for place in list(uncoupler.places(part.graph)):
            uncoupler.insert(part, place)


class _Uncoupler:
    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._gates: dict[str, str] = {}
        self._shared = self._shared_variables()
        self._crossed: dict[str, set[int]] = {}
        for crossing in analyzer.ledger.crossings:
            self._crossed.setdefault(crossing.cause.node, set()).update(self._serials(crossing.axis))

    def _serials(self, axis: Axis) -> set[int]:
        return {v.serial for v in variables(self._analyzer.solver.resolve(axis))}

    def _shared_variables(self) -> set[int]:
        """The variables that meet in an addition or a concatenation."""
        shared = {serial for axis in self._analyzer.ledger.joins for serial in self._serials(axis)}
        for call in self._analyzer.calls.values():
            if call.name == "cat":
                pieces = call.tensors("tensors")
                dim = int(call.number("dim")) % len(call.result)
                if len(pieces) > 1:
                    shared |= self._serials(call.result[dim])
        return shared

    def places(self, graph: fx.Graph) -> Iterator[_Place]:
        """One place for each reader of a shared width."""
        for node in graph.nodes:
            call = self._analyzer.calls.get(node)
            if call is not None and call.name in CONTRACTIONS and parameter_name(call.arguments["weight"]):
                place = self._place(call)
                if place is not None:
                    yield place

    def _place(self, call: Call) -> _Place | None:
        user, stream = call.node, call.arguments["input"]
        groups = call.notes.get("groups")
        if not isinstance(stream, fx.Node) or (groups is not None and groups.size != 1):
            return None
        axes = self._analyzer.axes[stream]
        spatial = 0 if call.name == "linear" else len(call.tensor("weight")) - 2
        dim = len(axes) - 1 - spatial
        best = None
        written = False
        while True:
            axis = self._analyzer.axes[stream][dim]
            if not written and self._may_select(stream, axis):
                best = _Place(stream, user, dim, call)
            above = self._above(stream, dim)
            if above is None:
                return best if self._serials(axis) & self._shared else None
            written = self._writes(stream) or (written and self._analyzer.calls[stream].name not in OWNS_MEMORY)
            user, (stream, dim) = stream, above

    def _may_select(self, stream: fx.Node, axis: Axis) -> bool:
        resolved = self._analyzer.solver.resolve(axis)
        return axis.size > 1 and not isinstance(resolved, Product) and not is_written(stream)

    def _above(self, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        """The input and dim that ``node`` passes on channel by channel for one reader; None: it does not."""
        call = self._analyzer.calls.get(node)
        if call is None or len(_readers(node)) != 1 or call.name in CONTRACTIONS or call.name == "cat":
            return None
        sources = [n for n in node.all_input_nodes if n.op != "get_attr" and isinstance(n.meta["val"], torch.Tensor)]
        carried = self._serials(self._analyzer.axes[node][dim])
        if len(sources) != 1 or not carried or carried & self._crossed.get(node.name, set()):
            return None
        found = [d for d, a in enumerate(self._analyzer.axes[sources[0]]) if self._serials(a) & carried]
        if len(found) != 1 or self._serials(self._analyzer.axes[sources[0]][found[0]]) != carried:
            return None
        return sources[0], found[0]

    def _writes(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return writes_in_place(node)
        return getattr(self._analyzer.model.get_submodule(str(node.target)), "inplace", False) is True

    def insert(self, captured: Captured, place: _Place) -> None:
        """Write a selection into the graph; calls that share a weight share its gate."""
        value = place.stream.meta["val"]
        with captured.graph.inserting_before(place.user):
            gate = captured.graph.get_attr(self._gate(captured, place))
            gate.meta["val"] = torch.empty(value.shape[place.dim], dtype=value.dtype, device="meta")
            selection = captured.graph.call_function(select_channels, (place.stream, gate, place.dim))
        selection.meta["val"] = torch.empty_like(value)
        for node in (gate, selection):
            node.meta.update({k: v for k, v in place.user.meta.items() if k in ("source", "module")})
        place.user.replace_input_with(place.stream, selection)

    def _gate(self, captured: Captured, place: _Place) -> str:
        weight = parameter_name(place.reader.arguments["weight"])
        assert weight is not None
        reader = weight.removesuffix(".weight")
        readable = re.sub(r"\W", "_", reader.removeprefix(captured.prefix))
        name = self._gates.setdefault(weight, f"{captured.prefix}_selection{len(self._gates)}_{readable}")
        value = place.stream.meta["val"]
        device = next((t.device for t in captured.sample.tensors), torch.device("cpu"))
        captured.constants[name] = torch.ones(value.shape[place.dim], dtype=value.dtype, device=device)
        captured.shapes[name] = (value.shape[place.dim],)
        captured.selections[name] = reader
        return name


def _readers(node: fx.Node) -> list[fx.Node]:
    """The ops that read a node's values, and not only its size."""
    about = (int, float, torch.Size, torch.dtype, torch.device)
    return [user for user in node.users if user.op == "output" or not isinstance(user.meta.get("val"), about)]
