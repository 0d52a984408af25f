"""The layers of a pruned network that can be rewritten: their inputs, their targets, and where biases can go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.calibration import LayerRows
from fxprune.calibration.collecting import norm_after
from fxprune.recovery.base import sum_after
from fxprune.rewriting import node_keep
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.rules.call import Call, parameter_name, parameter_names
from fxprune.util.paths import attribute

_BOUNDS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode, the only reader of a layer; its mean takes the intercept if the layer has no bias."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def scale(self) -> Tensor:
        """Shape ``(channels,)``, float64."""
        scale = (self.variance.double() + self.eps).rsqrt()
        return scale if self.weight is None else scale * self.weight.detach().double()

    @property
    def shift(self) -> Tensor:
        """Shape ``(channels,)``, float64."""
        shift = -self.mean.double() * self.scale
        return shift if self.bias is None else shift + self.bias.detach().double()


@dataclass(frozen=True)
class Reading:
    """One place at which a layer's weight is read."""

    rows: LayerRows  # how the layer reads its input
    source: fx.Node  # the layer's node in the original graph
    node: fx.Node  # the layer's node in the pruned graph
    input: fx.Node  # the node of the pruned graph that it reads
    target: fx.Node  # the original's node that it is fitted to: ``source``, or the sum that it feeds
    other: fx.Node | None = None  # if ``target`` is a sum, the pruned graph's other summand


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the pruned network whose input has changed."""

    name: str  # the state-dict name of its weight
    readings: tuple[Reading, ...]  # where its weight is read, in graph order; usually one place
    weight: Tensor  # its weight in the pruned network
    bias: Tensor | None  # its bias; None if it has none
    groups: int  # the number of groups of the convolution
    kept: Tensor | None  # the original's output channels that stay; None for all
    norm: Norm | None  # the batch norm that is its only reader; None if its weight is read at several places
    answer: fx.Node  # the original's node of its final output: itself, the sum that it feeds, or its batch norm
    # The range in which a ReLU that is the only reader of ``answer`` keeps values apart.
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def bounded(self) -> bool:
        """Whether a ReLU follows, which maps all values outside ``bounds`` to their ends."""
        return any(map(math.isfinite, self.bounds))

    @property
    def first(self) -> Reading:
        """The first place at which the weight is read."""
        return self.readings[0]

    @property
    def matrix(self) -> Tensor:
        """Its weight, ``(groups, output channels of a group, features)``."""
        return self.first.rows.matrix(self.weight.detach(), self.groups)


def find_layers(
    graph: ChannelGraph, pruned: PrunedGraphModule, masks: Mapping[Channels, Mask], *, everywhere: bool = True
) -> tuple[list[Layer], dict[str, str]]:
    """The layers in the order of the pruned graph, and why other layers with a changed input are left as they are.

    Args:
        graph, pruned, masks: the original, the pruned network, and the channels that stay.
        everywhere: also the layers whose input has all its channels but changed values.
    """
    return _Search(graph, pruned, masks, everywhere).run()


class _Search:
    def __init__(
        self, graph: ChannelGraph, pruned: PrunedGraphModule, masks: Mapping[Channels, Mask], everywhere: bool
    ) -> None:
        self.graph = graph
        self.pruned = pruned
        self.keep = node_keep(graph, graph.captured, masks)
        self.nodes = {node.name: node for node in pruned.graphs["eval"].nodes}
        own = set(graph.captured.graph.nodes)
        self.calls = {node: call for node, call in graph.calls.items() if node in own}
        self.order = [node for node in graph.captured.graph.nodes if node in self.calls]
        self.uses = Counter(name for call in self.calls.values() for name in parameter_names(call))
        self.changed = _changed(graph, self.keep.keys(), everywhere)
        self.left: dict[str, str] = {}

    def run(self) -> tuple[list[Layer], dict[str, str]]:
        found: dict[str, Layer] = {}
        for node in self.order:
            for layer in self._layers(node):
                found.setdefault(layer.name, layer)
        chosen = {reading.node for layer in found.values() for reading in layer.readings}
        ranks = {node: rank for rank, node in enumerate(self.pruned.graphs["eval"].nodes)}
        layers = sorted(found.values(), key=lambda layer: ranks[layer.first.node])
        aimed = (sum_after(layer, self.calls, self.nodes, chosen, ranks) for layer in layers)
        return [self._answered(layer) for layer in aimed], self.left

    def _answered(self, layer: Layer) -> Layer:
        """The layer with its answer, and the bounds of the ReLU after it if the weight is read at one place."""
        reading = layer.first
        behind = norm_after(reading.source, self.calls) if reading.other is None and layer.norm else None
        answer = behind or reading.target
        user = next(iter(answer.users)) if len(answer.users) == 1 else None
        call = self.calls.get(user) if user is not None and len(layer.readings) == 1 else None
        return replace(layer, answer=answer, bounds=_BOUNDS.get(call.name if call is not None else "", layer.bounds))

    def _layers(self, node: fx.Node) -> Iterator[Layer]:
        call = self.calls[node]
        source = call.arguments.get("input")
        if not call.has("weight") or source not in self.changed:
            return
        name = parameter_name(call.arguments["weight"])
        if call.name in ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm", "prelu", "embedding"):
            return
        readers = self._readers(name, node)
        reason = next((why for reader in readers if (why := self._refusal(reader, name))), "")
        if not reason and len({self._signature(reader) for reader in readers}) > 1:
            reason = f"its weight is read {len(readers)} times, not in the same way"
        if reason:
            self.left[name or node.name] = reason
            return
        assert name is not None
        yield self._layer(name, readers)

    def _readers(self, name: str | None, node: fx.Node) -> list[fx.Node]:
        """All ops that read a weight, in the order of the graph."""
        return [n for n in self.order if name in parameter_names(self.calls[n])] if name is not None else [node]

    def _refusal(self, node: fx.Node, name: str | None) -> str:
        call = self.calls[node]
        if name is None:
            return "its weight is computed"
        if LayerRows.of(call, transposed=True) is None or parameter_name(call.arguments["weight"]) != name:
            return f"{call.name} is no plain convolution and no linear layer"
        twin = self.nodes.get(node.name)
        if twin is None or twin.op != node.op or not twin.all_input_nodes:
            return "the pruned graph has no node of its own for it"
        return ""

    def _signature(self, node: fx.Node) -> tuple[object, ...]:
        """The properties that all readers of one weight must share."""
        call = self.calls[node]
        kept = self._kept(node, call)
        return call.name, self._bias(call), self._groups(node, call), None if kept is None else tuple(kept.tolist())

    def _layer(self, name: str, readers: Sequence[fx.Node]) -> Layer:
        first, call = readers[0], self.calls[readers[0]]
        bias = self._bias(call)
        return Layer(
            name,
            tuple(self._reading(node) for node in readers),
            attribute(self.pruned, name),
            None if bias is None or self.uses[bias] > len(readers) else attribute(self.pruned, bias),
            self._groups(first, call),
            self._kept(first, call),
            self._norm(first) if len(readers) == 1 else None,
            first,
        )

    def _reading(self, node: fx.Node) -> Reading:
        rows = LayerRows.of(self.calls[node], transposed=True)
        assert rows is not None
        twin = self.nodes[node.name]
        return Reading(rows, node, twin, _input_of(twin), node)

    def _bias(self, call: Call) -> str | None:
        return parameter_name(call.arguments.get("bias")) if call.has("bias") else None

    def _kept(self, node: fx.Node, call: Call) -> Tensor | None:
        """The output channels that stay."""
        rows = LayerRows.of(call, transposed=True)
        kept = self.keep.get(node.name)
        return None if kept is None or rows is None else kept[rows.channel_dim]

    def _groups(self, node: fx.Node, call: Call) -> int:
        """The number of groups of the pruned layer, which may have lost whole groups."""
        if call.name == "linear":
            return 1
        name = parameter_name(call.arguments["weight"])
        assert name is not None
        weight: Tensor = attribute(self.pruned, name)
        dim = 1 - len(weight.shape)
        if "transpose" not in call.name:
            source = call.arguments["input"]
            kept, shape = self.keep.get(source.name), call.shape_of(source)
        else:
            kept, shape = self.keep.get(node.name), call.output_shape
        index = None if kept is None else kept[dim]
        return (shape[dim] if index is None else len(index)) // weight.shape[1]

    def _norm(self, node: fx.Node) -> Norm | None:
        after = norm_after(node, self.calls)
        if after is None:
            return None
        call = self.calls[after]
        names = {n: parameter_name(call.arguments.get(n)) for n in ("running_mean", "running_var", "weight", "bias")}
        mean, variance = names["running_mean"], names["running_var"]
        if mean is None or variance is None or call.number("training") or self.uses[mean] > 1:
            return None
        weight, bias = (attribute(self.pruned, n) if n else None for n in (names["weight"], names["bias"]))
        eps = self._eps(after, call)
        return Norm(attribute(self.pruned, mean), attribute(self.pruned, variance), weight, bias, eps)

    def _eps(self, node: fx.Node, call: Call) -> float:
        if node.op == "call_module":
            module = self.pruned.get_submodule(str(node.target))
            assert isinstance(module, nn.modules.batchnorm._NormBase)
            return float(module.eps)
        return float(call.number("eps"))


def _changed(graph: ChannelGraph, cut: Collection[str], everywhere: bool) -> set[fx.Node]:
    """Nodes of the original graph that lose channels, and with ``everywhere`` those that depend on one."""
    found: set[fx.Node] = set()
    for node in graph.captured.graph.nodes:
        if node.name in cut or (everywhere and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def _input_of(node: fx.Node) -> fx.Node:
    value = node.args[0] if node.args else node.kwargs.get("input")
    assert isinstance(value, fx.Node)
    return value
