"""The layers of a pruned network that can be rewritten: what they read, what they are to give, where biases can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxprune.analysis import ChannelGraph
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.model_paths import attribute
from fxprune.recovery.following import sum_after
from fxprune.rewriting import node_keep
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.rules.call import Call, parameter_name
from fxprune.statistics import LayerRows
from fxprune.statistics.following import norm_after

__all__ = ["Layer", "Norm", "find_layers"]


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode that alone reads a layer, ``scale * value + shift`` per channel.

    Its running mean takes an intercept for a layer that has no bias: adding to the one is subtracting from the other.
    """

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
class Layer:
    """A convolution or linear layer of the pruned network whose input is no longer what it was.

    Attributes:
        name: its weight's state-dict name.
        rows: how it reads its input.
        source: its node in the original graph.
        node: its node in the pruned graph.
        input: the pruned graph's node that it reads.
        weight: its weight in the pruned network.
        bias: its bias; None where it has none.
        kept: the original's output channels that stay; None for all.
        norm: the batch norm that alone reads it.
        target: the original's node that the layer is to match: itself, or the sum that it goes into.
        other: where ``target`` is a sum, the pruned graph's other summand.
    """

    name: str
    rows: LayerRows
    source: fx.Node
    node: fx.Node
    input: fx.Node
    weight: Tensor
    bias: Tensor | None
    kept: Tensor | None
    norm: Norm | None
    target: fx.Node
    other: fx.Node | None = None


Keep = Mapping[str, tuple[Tensor | None, ...]]


def find_layers(
    graph: ChannelGraph, pruned: PrunedGraphModule, masks: Mapping[Channels, Mask], keep: Keep
) -> tuple[list[Layer], dict[str, str]]:
    """The layers in the order of the pruned graph, and the reasons why others that read a changed input stay."""
    return _Search(graph, pruned, masks, keep).run()


class _Search:
    def __init__(
        self,
        graph: ChannelGraph,
        pruned: PrunedGraphModule,
        masks: Mapping[Channels, Mask],
        keep: Keep,
    ) -> None:
        self.graph = graph
        self.pruned = pruned
        self.keep = keep
        self.nodes = {node.name: node for node in pruned.graphs["eval"].nodes}
        own = set(graph.captured.graph.nodes)
        self.calls = {node: call for node, call in graph.calls.items() if node in own}
        self.uses = Counter(name for call in self.calls.values() for name in _tensor_names(call))
        self.changed = _changed(graph, masks)
        self.left: dict[str, str] = {}

    def run(self) -> tuple[list[Layer], dict[str, str]]:
        found = [layer for node in self.graph.captured.graph.nodes for layer in self._layers(node)]
        chosen = {layer.node for layer in found}
        ranks = {node: rank for rank, node in enumerate(self.pruned.graphs["eval"].nodes)}
        return [sum_after(layer, self.calls, self.nodes, chosen, ranks) for layer in found], self.left

    def _layers(self, node: fx.Node) -> Iterator[Layer]:
        call = self.calls.get(node)
        source = None if call is None else call.arguments.get("input")
        if call is None or not call.has("weight") or source not in self.changed:
            return
        name = parameter_name(call.arguments["weight"])
        if call.name in ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm", "prelu", "embedding"):
            return
        reason = self._refusal(call, name)
        if reason:
            self.left[name or node.name] = reason
            return
        assert name is not None
        yield self._layer(node, call, name)

    def _refusal(self, call: Call, name: str | None) -> str:
        if name is None:
            return "its weight is computed"
        if LayerRows.of(call) is None:
            return f"{call.name} is no plain convolution and no linear layer"
        if self.uses[name] > 1:
            return f"its weight is read {self.uses[name]} times"
        twin = self.nodes.get(call.node.name)
        if twin is None or twin.op != call.node.op or not twin.all_input_nodes:
            return "the pruned graph has no node of its own for it"
        return ""

    def _layer(self, node: fx.Node, call: Call, name: str) -> Layer:
        rows = LayerRows.of(call)
        assert rows is not None
        bias = parameter_name(call.arguments.get("bias")) if call.has("bias") else None
        twin = self.nodes[node.name]
        return Layer(
            name,
            rows,
            node,
            twin,
            _input_of(twin),
            attribute(self.pruned, name),
            None if bias is None or self.uses[bias] > 1 else attribute(self.pruned, bias),
            self.keep[self.graph.captured.first_name(name)][0],
            self._norm(node),
            node,
        )

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


def _changed(graph: ChannelGraph, masks: Mapping[Channels, Mask]) -> set[fx.Node]:
    """Nodes of the original graph that lose channels, and those that depend on one."""
    cut = node_keep(graph, masks).keys()
    found: set[fx.Node] = set()
    for node in graph.captured.graph.nodes:
        if node.name in cut or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _tensor_names(call: Call) -> Iterator[str]:
    for value in call.arguments.values():
        name = parameter_name(value)
        if name is not None:
            yield name


def _input_of(node: fx.Node) -> fx.Node:
    value = node.args[0] if node.args else node.kwargs.get("input")
    assert isinstance(value, fx.Node)
    return value
