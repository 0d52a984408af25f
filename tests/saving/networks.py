"""Small traced networks, each with something that a saved folder must carry over exactly."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx import Graph, GraphModule, symbolic_trace

from fxprune.rewriting.pruned_module import PrunedGraphModule


class Outputs(NamedTuple):
    logits: torch.Tensor
    auxiliary: torch.Tensor


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same", groups=2), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        x = x + self.blocks(x)
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.embed(x)) * self.frozen


def shared() -> GraphModule:
    """One layer under two paths, one of them inside a list, and both called."""
    network = symbolic_trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    network.add_module("2", network.get_submodule("0"))
    network.add_module("held", nn.ModuleList([nn.ReLU()]))
    network.get_submodule("held").append(network.get_submodule("0"))
    return network


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.register_buffer("mask", torch.randn(5, 3), persistent=False)
        self.register_buffer("ones", torch.ones(6, 3, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("steps", torch.arange(20), persistent=False)
        self.register_buffer("odd", torch.tensor([1.0, float("inf"), float("nan")]), persistent=False)
        self.register_buffer("flags", torch.rand(13, 3) > 0.5, persistent=False)
        self.register_buffer("zeros", torch.tensor([0.0, -0.0] * 20), persistent=False)
        self.register_buffer("table", torch.randint(-9, 900, (9, 9)), persistent=False)
        self.register_buffer("same_table", self.table.clone(), persistent=False)
        self.register_buffer("nothing", torch.zeros(0, 3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[:, self.index], self.mask, self.ones.to(x.dtype), self.nothing])
        x = torch.where(self.flags, x, torch.nan_to_num(x * self.odd))
        x = x.sum() * torch.take(x, self.steps) + torch.sum(torch.mul(self.table, x.size(0)))
        return x.sum() + torch.div(torch.ones_like(x).sum(), self.zeros) - torch.mul(self.same_table, x.size(0)).sum()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layers = nn.ModuleList([nn.Linear(8, 24), nn.Linear(8, 8)])
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(8)), nn.Parameter(torch.full((8,), 2.0))])
        self.norm = nn.LayerNorm(8, eps=1e-6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        b, n = x.size(0), x.shape[1]
        q, k, v = self.layers[0](self.norm(x)).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        y = self.layers[1](y) * self.scales[0] + x / self.scales[1]
        return {"first": y[:, 0], "rest": y[:, 1:, ::2], "raw": (y[..., None, -1], x.dtype)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.cell = nn.RNN(14, 3, nonlinearity="relu", batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (h, _) = self.rnn(x)
        return self.cell(y)[0].sum() + h.sum()


def arguments() -> GraphModule:
    """Inputs with defaults and a builtin's name, item assignment, dtypes, slices."""
    graph = Graph()
    x = graph.placeholder("input")
    y = graph.placeholder("y", default_value=None)
    limit = graph.placeholder("limit", default_value=math.inf)
    like = {"dtype": torch.float32, "memory_format": torch.contiguous_format, "device": torch.device("cpu")}
    z = graph.call_function(torch.zeros_like, (x,), like)
    first = graph.call_function(operator.getitem, (x, (slice(None), 0)))
    graph.call_function(operator.setitem, (z, (slice(None, None, None), 1), first))
    part = graph.call_function(operator.getitem, (z, (..., slice(0, None, 2), None)))
    graph.call_function(operator.isub, (part, 1))
    power = graph.call_function(operator.pow, (2, graph.call_function(torch.clamp, (x,), {"max": limit})))
    flag = graph.call_function(operator.is_, (y, None))
    result = graph.call_function(operator.sub, (graph.call_function(operator.neg, (z,)), power))
    graph.output((result, flag, [graph.call_function(getattr, (x, "dtype")), True, math.nan, slice(1)]))
    return GraphModule(nn.Module(), graph)


def in_place() -> GraphModule:
    """Updates of tensors, whose old value is or is not used again, and of numbers."""
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    total = graph.call_function(operator.mul, (x, 1))
    part = graph.call_function(operator.mul, (y, 2))
    updated = graph.call_function(operator.iadd, (total, part))
    n = graph.call_method("size", (x, 0))
    m = graph.call_function(operator.iadd, (n, 1))
    scaled = graph.call_function(operator.mul, (total, m))
    graph.call_function(operator.imul, (scaled, m))
    graph.call_method("add_", (scaled, 1))
    number = graph.call_method("item", (graph.call_method("sum", (y,)),))
    more = graph.call_function(operator.iadd, (number, graph.call_function(torch.sum, (x,))))
    graph.output((scaled, updated, total, m, more))
    return GraphModule(nn.Module(), graph)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float16)
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.half()).to(x.dtype) * self.scale.to(torch.float32)


def odd_names() -> nn.Module:
    """Names that are numbers with gaps, builtins or not Python names at all."""
    net = nn.Sequential()
    for name, width in (("0", 4), ("def_", 5), ("2", 6), ("in-between", 7), ("print", 8)):
        net.add_module(name, nn.Linear(width, width + 1))
    return net


class Auxiliary(nn.Module):
    """In training mode another graph with a head of its own, and a named tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> Any:
        x = F.dropout(self.body(x), 0.25, self.training)
        if self.training:
            return Outputs(self.head(x), self.auxiliary(x) * scale)
        return self.head(x)


def two_modes() -> PrunedGraphModule:
    net = Auxiliary()
    graphs = []
    for mode in (False, True):
        trace = fx.Tracer()
        trace.root = net
        graphs.append(trace.trace(net.train(mode), concrete_args={"scale": 2.0}))
    targets = {str(n.target) for graph in graphs for n in graph.nodes if n.op == "call_module"}
    root = {target: net.get_submodule(target) for target in sorted(targets)}
    return PrunedGraphModule(root, dict(zip(("eval", "training"), graphs, strict=True)), class_name="Auxiliary")


class Shadowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.torch = nn.Linear(4, 4)
        self.F = nn.Linear(4, 4)

    def forward(self, F: torch.Tensor, torch_: torch.Tensor) -> torch.Tensor:  # noqa: N803
        return self.F(self.torch(F)).relu() + torch.relu(torch_)


Case = tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]]]
CASES: dict[str, Case] = {
    "residual": (Residual, lambda: (torch.randn(2, 3, 6, 6),)),
    "tied": (Tied, lambda: (torch.randn(2, 6),)),
    "buffers": (Buffers, lambda: (torch.randn(2, 3),)),
    "attention": (Attention, lambda: (torch.randn(2, 3, 8),)),
    "recurrent": (Recurrent, lambda: (torch.randn(2, 4, 5),)),
    "shared": (shared, lambda: (torch.randn(2, 6),)),
    "arguments": (arguments, lambda: (torch.randn(2, 3).abs(),)),
    "in-place": (in_place, lambda: (torch.randn(2, 3), torch.randn(2, 3))),
    "half": (Half, lambda: (torch.randn(2, 4),)),
    "odd-names": (odd_names, lambda: (torch.randn(2, 4),)),
    "two-modes": (two_modes, lambda: (torch.randn(2, 4),)),
    "shadowing": (Shadowing, lambda: (torch.randn(2, 4), torch.randn(2, 4))),
}


def make(name: str) -> tuple[GraphModule, tuple[torch.Tensor, ...]]:
    """A traced network in eval mode with random statistics, and inputs for it."""
    torch.manual_seed(0)
    build, inputs = CASES[name]
    built = build()
    traced = (built if isinstance(built, GraphModule) else symbolic_trace(built)).eval()
    for module in traced.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return traced, inputs()
