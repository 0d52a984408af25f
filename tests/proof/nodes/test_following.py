"""A captured graph is followed only if it makes every call that the original makes, and no other."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.capture.samples import Sample
from fxprune.proof.nodes import Pair
from fxprune.proof.nodes.programs import GraphOver, Programs, in_mode
from tests.proof.nodes.pairing import Mixed, rewritten


def pair_of(model: nn.Module, sample: Tensor, *, training: bool = False) -> Pair:
    """The pair of the graph of one mode, of which only the captured half is used."""
    return rewritten(model, sample, 0.1).pairs[-1 if training else 0]


def follows(model: nn.Module, pair: Pair, sample: Tensor, *, training: bool = False) -> bool:
    with in_mode(model, training):
        return Programs(model).follows(GraphOver(pair, model), Sample((sample,), {}))


SAMPLE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("training", [False, True])
def test_the_graph_of_each_mode_is_followed_in_its_mode(training: bool) -> None:
    model = Mixed().eval()
    pair = pair_of(model, SAMPLE, training=training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert follows(model, pair, SAMPLE, training=training)
    assert follows(model, pair, torch.randn(3, 3, 6, 5), training=training)
    assert not follows(model, pair, SAMPLE, training=not training)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all("forward" not in vars(part) for part in model.modules())


def node(graph: fx.Graph, name: str) -> fx.Node:
    return next(n for n in graph.nodes if n.name == name)


def reading(name: str, place: int, other: str) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        node(graph, name).update_arg(place, node(graph, other))

    return change


def with_argument(name: str, place: int, value: Any) -> Callable[[fx.Graph], None]:
    return lambda graph: node(graph, name).update_arg(place, value)


def with_keyword(name: str, keyword: str, value: Any) -> Callable[[fx.Graph], None]:
    return lambda graph: node(graph, name).update_kwarg(keyword, value)


def calling(name: str, target: Any) -> Callable[[fx.Graph], None]:
    return lambda graph: setattr(node(graph, name), "target", target)


def without(name: str) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        gone = node(graph, name)
        gone.replace_all_uses_with(gone.all_input_nodes[0])
        graph.erase_node(gone)

    return change


def twice(name: str) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        before = node(graph, name)
        with graph.inserting_after(before):
            again = graph.node_copy(before, lambda given: given)
        again.meta["val"] = before.meta["val"]

    return change


def swapped(graph: fx.Graph) -> None:
    """The sigmoid before the sum: equal values, but another order."""
    node(graph, "add").prepend(node(graph, "sigmoid"))


def other_output(graph: fx.Graph) -> None:
    next(n for n in graph.nodes if n.op == "output").args = (node(graph, "mean"),)


TAMPERED: dict[str, Callable[[fx.Graph], None]] = {
    "a layer reads an earlier value": reading("second", 0, "first"),
    "operands in another order": lambda graph: setattr(node(graph, "add"), "args", node(graph, "add").args[::-1]),
    "another operand": reading("add_1", 0, "relu"),
    "another number": with_argument("mul", 1, 0.25),
    "an integer for a number": with_argument("mul_", 1, 2),
    "other dims": with_argument("mean", 1, (2, 2)),
    "another slope": with_keyword("leaky_relu", "negative_slope", 0.2),
    "another mode": with_keyword("dropout", "training", True),
    "another probability": with_keyword("dropout", "p", 0.1),
    "another layer": calling("second", "first"),
    "another function": calling("sigmoid", torch.tanh),
    "another operator": calling("add", operator.sub),
    "an operator in place": calling("add", operator.iadd),
    "another method": calling("mean", "sum"),
    "a write left out": without("add_"),
    "a gradient that does not stop": without("detach"),
    "a norm left out": without("norm"),
    "a call more": twice("sigmoid"),
    "a write more": twice("mul_"),
    "a layer more": twice("head"),
    "another order": swapped,
    "another output": other_output,
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_graph_that_does_anything_else_is_not_followed(change: Callable[[fx.Graph], None]) -> None:
    model = Mixed().eval()
    pair = pair_of(model, SAMPLE)
    assert follows(model, pair, SAMPLE)
    change(pair.full)
    assert not follows(model, pair, SAMPLE)


class Twisted(nn.Module):
    """After its capture as an ordinary network, it does one thing that no torch function shows, or one call more."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.other = nn.Linear(8, 5)
        self.register_buffer("table", torch.ones(8, 1, 1))
        self.twist: Callable[[Twisted, Tensor], Any] | None = None
        self.around: Callable[[], Any] | None = None
        self.swaps = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)) * self.table
        if self.twist is not None:
            x = self.twist(self, x)
        if self.around is not None:
            with self.around():
                x = F.relu(x)
        else:
            x = F.relu(x)
        size = x.shape[1]
        own = dict(self.head._parameters)
        self.head._parameters.update((self.other if self.swaps else self.head)._parameters)
        result: Tensor = self.head(x.mean((2, 3)).view(-1, size))
        self.head._parameters.update(own)
        return result


def hidden_write(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        x.mul_(2.0)
    return x


def hidden_write_to_a_buffer(net: Twisted, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        net.norm.running_mean.add_(1)  # type: ignore[union-attr]
    return x


def hidden_result(net: Twisted, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x + 0


def replaced_buffer(net: Twisted, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        net.table = net.table.clone()
    return x


def caught(net: Twisted, x: Tensor) -> Tensor:
    try:
        return torch.tanh(x)
    except Exception:
        return x


def written_parameter(net: Twisted, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.head.weight.mul_(2)
    return x


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Turned(Reversed):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x


TWISTS: dict[str, Callable[[Twisted, Tensor], Tensor]] = {
    "a hidden write": lambda net, x: hidden_write(x),
    "a hidden write to a buffer": hidden_write_to_a_buffer,
    "a hidden result": hidden_result,
    "a replaced buffer": replaced_buffer,
    "an error that is caught": caught,
    "a write to a parameter": written_parameter,
    "a backward pass of its own": lambda net, x: Reversed.apply(x),
    "a backward pass of its own behind a layer": lambda net, x: Turned.apply(x),
    "a value that is read": lambda net, x: x if float(x.sum()) < 1e30 else -x,
    "a layer more": lambda net, x: (net.norm(x), x)[1],
    "a draw": lambda net, x: (torch.rand(1), x)[1],
    "a data tensor": lambda net, x: x.data,
}
AROUND: dict[str, Callable[[], Any]] = {
    "no gradient": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another kernel": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}


@pytest.mark.parametrize("twist", TWISTS.values(), ids=TWISTS)
def test_an_original_that_does_more_is_not_followed(twist: Callable[[Twisted, Tensor], Tensor]) -> None:
    model = Twisted().eval()
    pair = pair_of(model, SAMPLE)
    assert follows(model, pair, SAMPLE)
    weight = model.head.weight.clone()
    model.twist = twist
    assert not follows(model, pair, SAMPLE)
    assert torch.equal(model.head.weight, weight)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_other_settings_around_a_call_are_noticed(around: Callable[[], Any]) -> None:
    model = Twisted().eval()
    pair = pair_of(model, SAMPLE)
    model.around = around
    assert not follows(model, pair, SAMPLE)


def test_a_layer_with_the_tensors_of_another_is_not_followed() -> None:
    model = Twisted().eval()
    pair = pair_of(model, SAMPLE)
    model.swaps = True
    assert not follows(model, pair, SAMPLE)


def test_hooks_are_not_followed() -> None:
    model = Twisted().eval()
    pair = pair_of(model, SAMPLE)
    handle = model.first.register_forward_hook(lambda layer, args, output: output * 2)
    assert not follows(model, pair, SAMPLE)
    handle.remove()
    assert follows(model, pair, SAMPLE)
    model.register_full_backward_hook(lambda *_: None)
    assert not follows(model, pair, SAMPLE)


class Wide(nn.Module):
    """Layers whose values are left out, of every kind for which shapes are known, and some that are computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Conv2d(8, 16, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2, padding="same")
        self.odd = nn.Conv2d(16, 8, 3, padding=1, padding_mode="circular")
        self.line = nn.Conv1d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.odd(self.grouped(self.norm(self.plain(x))))
        x = self.line(x.flatten(2)).transpose(1, 2)
        return {"scores": self.head(x).relu_()}


def test_layers_are_followed_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = Wide().eval(), torch.randn(2, 8, 24, 26)
    pair = pair_of(model, sample)
    computed: list[str] = []
    for name in ("conv2d", "conv1d", "linear", "batch_norm"):
        own = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *a, own=own, name=name: (computed.append(name), own(*a))[1])
    programs = Programs(model)
    assert programs.follows(GraphOver(pair, model), Sample((sample,), {}))
    assert computed == ["conv2d", "conv2d"]  # padding that is no number, and no zeros
    node(pair.full, "line").update_arg(0, node(pair.full, "odd"))
    assert not programs.follows(GraphOver(pair, model), Sample((sample,), {}))


def test_weights_of_another_are_not_written_by_a_lookup() -> None:
    table = nn.Embedding(50, 8, max_norm=0.1)
    model = nn.Sequential(table, nn.Linear(8, 4)).eval()
    tokens = torch.randint(50, (2, 5))
    before = table.weight.clone()
    pair = rewritten(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4)), tokens, 0.1).pairs[0]
    assert not Programs(model).follows(GraphOver(pair, model), Sample((tokens,), {}))
    assert torch.equal(table.weight, before)


class Counting(nn.Module):
    """Writes to buffers through a layer, and through functions; or through a view."""

    def __init__(self, *, viewed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.viewed = viewed
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        for name in ("steps", "mean", "spread"):
            self.register_buffer(name, torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if self.training:
            (self.steps[2:4] if self.viewed else self.steps).add_(1)
            x = F.batch_norm(x, self.mean, self.spread, training=True)
        return self.head(x * self.steps)


@pytest.mark.parametrize("viewed", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_buffers_that_the_calls_write_are_restored(training: bool, viewed: bool) -> None:
    model, sample = Counting(viewed=viewed).eval(), torch.randn(4, 6)
    pair = pair_of(model, sample, training=training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def changed() -> set[str]:
        return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}

    with in_mode(model, training):
        model(sample)
    written = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "steps", "mean", "spread"}
    assert changed() == (written if training else set())
    model.load_state_dict(before)
    # A write through a view changes a tensor that the write does not name.
    assert follows(model, pair, sample, training=training) is not (training and viewed)
    assert not changed()
    node(pair.full, "head").target = "first"
    assert not follows(model, pair, sample, training=training)
    assert not changed()
