"""The channel graph: labelled couplings, groups as its components, and what it says when asked."""

from __future__ import annotations

import re
from collections import defaultdict

import networkx as nx
import pytest
import torch
from torch import nn

import fxprune
from fxprune.axes.solver import Cause
from fxprune.errors import AnalysisError, ModelError
from tests.nets.strategy import random_specification

RANDOM_NETS = 60


class Residual(nn.Module):
    """A residual block between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(x.mean((2, 3)))


class Parts(nn.Module):
    """Concatenation and chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(8, 10), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.c(torch.cat([self.a(x), self.b(x)], 1)).chunk(2, 1)
        return self.d(torch.cat([first * second.sigmoid(), second], 1))


class Attention(nn.Module):
    """Heads by head width, with a norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(12), nn.Linear(12, 4)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.last(x + self.attention(y, y, y, need_weights=False)[0])


def image() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def residual() -> fxprune.ChannelGraph:
    return fxprune.analyze(Residual(), image())


def networks() -> list[fxprune.ChannelGraph]:
    graphs = [fxprune.analyze(Residual(), image()), fxprune.analyze(Parts(), torch.randn(2, 8))]
    graphs.append(fxprune.analyze(Attention(), torch.randn(2, 5, 12)))
    for seed in range(RANDOM_NETS):
        specification = random_specification(seed)
        graphs.append(fxprune.analyze(specification.build(), specification.sample(2)))
    return graphs


# -- the graph --------------------------------------------------------------------------------------------------------


def test_every_coupling_is_labelled_with_the_op_that_asked_for_it() -> None:
    for graph in networks():
        for _, _, data in graph.graph.edges(data=True):
            assert isinstance(data["cause"], Cause)
            assert data["cause"].op
            assert data["causes"][0] is data["cause"]
            assert len(set(data["causes"])) == len(data["causes"])


def test_every_node_is_a_place_in_the_network() -> None:
    for graph in networks():
        for node, data in graph.graph.nodes(data=True):
            assert data["origin"].tensor, node


def test_groups_are_the_connected_components() -> None:
    for graph in networks():
        components: dict[int, list[set[object]]] = defaultdict(list)
        for component in nx.connected_components(graph.graph):
            (root,) = {part for _, part in component}
            if root is not None:
                components[root].append(component)
        assert all(len(found) == 1 for found in components.values())
        assert {group.variable.serial for group in graph.groups} <= components.keys()
        for group in graph.groups:
            (component,) = components[group.variable.serial]
            serials = {serial for serial, _ in component}
            members = {(m.tensor, m.dim) for m in group.members}
            assert members == {place for serial, place in graph._variables.items() if serial in serials}


def test_every_free_place_is_in_a_group() -> None:
    for graph in networks():
        free = {(n, d) for n, axes in graph.tensors.items() for d, a in enumerate(axes) if kind(a) != "Fixed"}
        grouped = {(m.tensor, m.dim) for group in graph.groups for m in group.members}
        unused = {n for n in graph.tensors if not any(m.tensor == n for g in graph.groups for m in g.members)}
        assert {place for place in free - grouped if place[0] not in unused} == set()


def kind(axis: object) -> str:
    return type(axis).__name__


def test_groups_have_unique_names_in_the_order_of_the_network() -> None:
    for graph in networks():
        names = [group.name for group in graph.groups]
        assert len(set(names)) == len(names)
        order = list(graph.shapes)
        first = [order.index(group.members[0].tensor) for group in graph.groups]
        assert first == sorted(first)


def test_members_and_roles(residual: fxprune.ChannelGraph) -> None:
    stream, inner = residual.groups
    assert (stream.name, stream.size, stream.crosses_add) == ("stem", 8, True)
    assert (inner.name, inner.size, inner.crosses_add) == ("a", 6, False)
    roles = {(m.tensor, m.dim): m.role for m in stream.members}
    assert {place for place, role in roles.items() if role == "out"} == {("stem.weight", 0), ("b.weight", 0)}
    assert {place for place, role in roles.items() if role == "in"} == {("a.weight", 1), ("head.weight", 1)}
    assert roles["norm.running_var", 0] == "scale"


def test_pinned_widths_have_a_reason_and_a_place(residual: fxprune.ChannelGraph) -> None:
    pinned = {f"{p.tensor} {p.dim}": p for p in residual.pinned}
    assert pinned.keys() == {"stem.weight 1", "head.weight 0"}
    assert pinned["stem.weight 1"].reason == "it is a dim of the network's input"
    assert re.fullmatch(r"stem \(.*test_groups.py:\d+\)", pinned["stem.weight 1"].cause)
    assert pinned["head.weight 0"].reason == "it is a dim of the network's output"


# -- deleting an edge -------------------------------------------------------------------------------------------------


def edges_of(graph: fxprune.ChannelGraph, op: str) -> list[tuple[object, object]]:
    return [(a, b) for a, b, data in graph.graph.edges(data=True) if {c.op for c in data["causes"]} == {op}]


def test_deleting_the_edge_of_the_addition_splits_the_group(residual: fxprune.ChannelGraph) -> None:
    (edge,) = edges_of(residual, "add")
    before = {frozenset(c) for c in nx.connected_components(residual.graph)}
    cut = residual.graph.copy()
    cut.remove_edge(*edge)
    after = {frozenset(c) for c in nx.connected_components(cut)}
    (whole,) = before - after
    left, right = sorted(after - before, key=len)
    assert left | right == whole
    places = {residual._variables[serial] for serial, _ in left}
    assert places == {("b.weight", 0), ("b.bias", 0)}


def test_without_the_addition_the_network_has_the_groups_that_the_cut_gives(residual: fxprune.ChannelGraph) -> None:
    class NotAdded(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.stem(x)).relu()
            self.a(x)
            return self.head(x.mean((2, 3))), self.b(self.a(x).relu()).mean((1, 2, 3))

    (edge,) = edges_of(residual, "add")
    cut = residual.graph.copy()
    cut.remove_edge(*edge)
    places = [
        frozenset(residual._variables[s] for s, _ in component)
        for component in nx.connected_components(cut)
        if all(part is not None for _, part in component)
    ]
    alone = fxprune.analyze(NotAdded(), image())
    assert set(places) == {frozenset((m.tensor, m.dim) for m in g.members) for g in alone.groups}


def test_each_edge_of_the_group_is_a_bridge_in_a_chain() -> None:
    graph = fxprune.analyze(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)), torch.randn(2, 8))
    (group,) = graph.groups
    component = next(c for c in nx.connected_components(graph.graph) if any(p == group.variable.serial for _, p in c))
    part = graph.graph.subgraph(component)
    assert set(nx.bridges(part)) == set(part.edges) or len(list(nx.bridges(part))) == part.number_of_edges()


def test_two_couplings_of_one_pair_are_both_remembered() -> None:
    class Twice(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.stem(x)).relu()
            y = self.b(self.a(x).relu())
            return self.head(((x + y) * (y - x)).mean((2, 3)))

    graph = fxprune.analyze(Twice(), image())
    causes = [[c.op for c in data["causes"]] for _, _, data in graph.graph.edges(data=True) if len(data["causes"]) > 1]
    assert ["add", "sub", "mul"] in causes or ["add", "sub"] in causes


# -- explaining -------------------------------------------------------------------------------------------------------


def test_why_two_are_tied(residual: fxprune.ChannelGraph) -> None:
    lines = residual.explain("stem", "b").splitlines()
    assert lines[0] == "stem.weight dim 0"
    assert re.fullmatch(r"  = b.weight dim 0, by add \(.*test_groups.py:\d+\)", lines[1])
    assert len(lines) == 2


def test_a_path_of_several_steps(residual: fxprune.ChannelGraph) -> None:
    lines = residual.explain("b.bias", "norm.running_var").splitlines()
    assert [re.sub(r" \(.*\)", "", line.strip()) for line in lines] == [
        "b.bias dim 0",
        "= b.weight dim 0, by b",
        "= stem.weight dim 0, by add",
        "= norm.running_var dim 0, by norm",
    ]


def test_the_path_is_the_same_in_both_directions(residual: fxprune.ChannelGraph) -> None:
    there, back = residual.explain("b", "norm"), residual.explain("norm", "b")
    assert len(there.splitlines()) == len(back.splitlines())


def test_any_name_of_a_tied_tensor_will_do() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.hidden(self.table(x)))

    graph = fxprune.analyze(Tied(), torch.zeros(2, 3, dtype=torch.long))
    assert graph.explain("head", "hidden.weight:0") == graph.explain("table", "hidden.weight:0")
    assert graph.explain("head", "hidden.weight:0").startswith("table.weight dim 1")


def test_two_that_share_nothing() -> None:
    graph = fxprune.analyze(Parts(), torch.randn(2, 8))
    assert graph.explain("a", "b") == "a and b share no channel group"


def test_a_part_of_a_dim_is_named_by_the_op_that_cut_it() -> None:
    graph = fxprune.analyze(Parts(), torch.randn(2, 8))
    text = graph.explain("c:0", "d:1")
    assert text.startswith("c.weight dim 0\n  = a part at ")
    assert "chunk" in text
    assert text.splitlines()[-1].strip().startswith("= d.weight dim 1, by d")


def test_why_a_width_is_pinned(residual: fxprune.ChannelGraph) -> None:
    text = residual.explain("head")
    assert text.splitlines()[0] == "head.weight dim 0 is pinned: it is a dim of the network's output, at output"
    assert text.splitlines()[1] == "head.weight dim 1 is not pinned"
    assert "head.weight dim 0, by head" in residual.explain("head.bias")


def test_the_way_to_what_pins_a_width() -> None:
    class Shown(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.stem(x)).relu()
            return x + self.b(self.a(x).relu())

    graph = fxprune.analyze(Shown(), image())
    lines = graph.explain("norm.bias").splitlines()
    assert lines[0].startswith("norm.bias dim 0 is pinned: it is a dim of the network's output, at output")
    assert any("by norm" in line for line in lines[1:])
    both = graph.explain("norm.bias", "b")
    assert "by add" in both
    assert "is pinned: it is a dim of the network's output" in both


def test_dims_are_chosen_with_a_colon(residual: fxprune.ChannelGraph) -> None:
    assert residual.explain("a.weight:0", "b:1").splitlines()[0] == "a.weight dim 0"
    assert residual.explain("a:0", "b:0") == "a:0 and b:0 share no channel group"
    assert residual.explain("a.weight:2").startswith("a.weight dim 2 is pinned: a kernel's extent is fixed")


@pytest.mark.parametrize("name", ["nothing", "a.wait", "", "a.weight:4", "a.weight:x", "a:-1"])
def test_unknown_names(residual: fxprune.ChannelGraph, name: str) -> None:
    with pytest.raises(AnalysisError, match="named|from 0 to 3"):
        residual.explain(name)
    with pytest.raises(AnalysisError, match="named|from 0 to 3"):
        residual.explain("stem", name)


def test_a_network_in_which_everything_is_pinned_can_be_asked_why() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    graph = fxprune.analyze(model, torch.randn(2, 8))
    assert graph.groups == ()
    assert "network's output" in graph.explain("0")
    with pytest.raises(ModelError, match="no prunable channels"):
        fxprune.compile(model, torch.randn(2, 8), 0.3)


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_the_drawing_is_dot_with_one_colour_a_group(residual: fxprune.ChannelGraph) -> None:
    text = residual.draw()
    assert text.startswith("graph channels {")
    assert text.endswith("}")
    assert text.count("{") == text.count("}") == 1
    nodes = dict(re.findall(r'^  (n\d+) \[label="([^"]*)", shape=\w+, fillcolor="[^"]*"\];$', text, re.M))
    edges = re.findall(r'^  (n\d+) -- (n\d+) \[label="([^"]*)"\];$', text, re.M)
    assert len(nodes) == residual.graph.number_of_nodes()
    assert len(edges) == residual.graph.number_of_edges()
    assert len(text.splitlines()) == len(nodes) + len(edges) + 3
    assert {"stem.weight dim 0", "head.weight dim 1"} <= set(nodes.values())
    colours = dict(re.findall(r'label="([^"]*)", shape=ellipse, fillcolor="([^"]*)"', text))
    assert colours["stem.weight dim 0"] == colours["b.weight dim 0"] != colours["a.weight dim 0"]
    boxes = re.findall(r'label="([^"]*)", shape=box', text)
    assert "head.weight dim 0" in boxes
    assert "stem.weight dim 0" not in boxes
    assert all({a, b} <= nodes.keys() and label for a, b, label in edges)


def test_the_drawing_depends_on_the_network_alone() -> None:
    assert fxprune.analyze(Residual(), image()).draw() == fxprune.analyze(Residual(), image()).draw()


def test_names_with_quotes_are_escaped() -> None:
    model = nn.Sequential()
    model.add_module('a"b\\c', nn.Linear(8, 16))
    model.add_module("last", nn.Linear(16, 4))
    assert 'label="a\\"b\\\\c.weight dim 0"' in fxprune.analyze(model, torch.randn(2, 8)).draw()


def test_another_format(residual: fxprune.ChannelGraph) -> None:
    with pytest.raises(AnalysisError, match="unknown format 'bmp'"):
        residual.draw("bmp")
