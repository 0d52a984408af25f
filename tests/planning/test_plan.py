"""The plan: text, files, and refusing what does not fit."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.errors import FileError, PlanError
from fxprune.planning import Plan, allocate
from fxprune.planning.plan_text import parse_ranges, write_ranges
from tests.planning import graphs
from tests.planning.graphs import HandGraph

SETTINGS = {"ratio": 0.5, "budget": "macs", "criterion": "magnitude", "seed": 0, "exclude": ["fc"]}


def plan_of(graph: HandGraph, ratio: float = 0.5) -> Plan:
    scores = {g: np.random.default_rng(0).random(g.size) for g in graph.groups}
    return Plan.from_masks(graph, allocate(graph, scores, ratio=ratio), SETTINGS)


def changed(plan: Plan, *path: Any, value: Any) -> str:
    """The plan's text with one value replaced."""
    document = json.loads(plan.to_json())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document)


def test_keep_has_one_entry_per_dim() -> None:
    graph = graphs.chain(8, 6)
    plan = plan_of(graph)
    kept = plan.groups["c0"]
    out, into, *taps = plan.keep["conv0.weight"]
    assert out is not None
    assert out.dtype == torch.int64
    assert out.tolist() == list(kept)
    assert (into, *taps) == (None, None, None)
    assert plan.keep["conv1.weight"][1].tolist() == list(kept)  # type: ignore[union-attr]
    assert plan.keep["norm0.running_var"][0].tolist() == list(kept)  # type: ignore[union-attr]
    assert plan.keep["fc.bias"] == (None,)


def test_nothing_removed_is_none_everywhere() -> None:
    plan = plan_of(graphs.attention(), ratio=0)
    assert all(k is None for keep in plan.keep.values() for k in keep)


@pytest.mark.parametrize("build", [graphs.residual, graphs.attention, graphs.gathered])
def test_text_and_back(build: Any, tmp_path: Path) -> None:
    graph = build()
    plan = plan_of(graph)
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    assert again.to_json() == text
    assert hash(again) == hash(plan)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    masks = again.masks(graph)
    assert {g.name: tuple(np.flatnonzero(masks[g.variable])) for g in graph.groups} == plan.groups


def test_text_is_for_reviewers() -> None:
    graph = graphs.chain(8)
    mask = np.array([1, 1, 1, 0, 0, 1, 0, 1], dtype=np.bool_)
    text = Plan.from_masks(graph, {graph.groups[0]: mask}, {"ratio": 0.4}).to_json()
    assert '\n  "c0": "0-2,5,7"\n' in text
    assert '\n  "conv0.weight": {"keep": ["0-2,5,7", null, null, null], "shape": [8, 3, 3, 3]},\n' in text
    assert text.index('"groups"') < text.index('"settings"') < text.index('"tensors"')


def test_it_can_be_copied_and_pickled() -> None:
    plan = plan_of(graphs.residual())
    assert copy.deepcopy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan != "plan"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    plan = plan_of(graphs.chain(4))
    path = tmp_path / "plan.json"
    plan.save(path)
    before = path.read_text()
    broken = Plan(plan.keep, plan.groups, plan.shapes, {"ratio": float("nan")})
    with pytest.raises(PlanError, match="JSON"):
        broken.save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


# -- another network ---------------------------------------------------------------------------------------------------


def test_another_network_is_refused() -> None:
    plan = plan_of(graphs.chain(8, 6))
    with pytest.raises(PlanError, match=r"'conv0.weight' had shape \(8, 3, 3, 3\), here it has \(9, 3, 3, 3\)"):
        plan.check(graphs.chain(9, 6).shapes)
    with pytest.raises(PlanError, match=r"cuts 'conv1.weight'"):
        plan.check(graphs.chain(8).shapes)
    with pytest.raises(PlanError, match=r"does not know 'conv2.weight'"):
        plan.check({**graphs.chain(8, 6, 4).shapes, "fc.weight": (10, 6)})
    plan.check(graphs.chain(8, 6).shapes)


def test_groups_must_explain_the_kept_indices() -> None:
    graph = graphs.chain(8, 6)
    plan = plan_of(graph)
    with pytest.raises(PlanError, match="contradicts itself"):
        Plan.from_json(changed(plan, "tensors", "conv0.weight", "keep", 0, value="0")).masks(graph)
    with pytest.raises(PlanError, match="channel group 'c0' has 8"):
        Plan.from_json(changed(plan, "groups", "c0", value="0-8")).masks(graph)
    with pytest.raises(PlanError, match="only one of the two has the channel group 'other'"):
        Plan.from_json(changed(plan, "groups", "other", value="0")).masks(graph)


@pytest.mark.parametrize("mask", [np.zeros(8, dtype=np.bool_), np.ones(7, dtype=np.bool_), np.ones(8)])
def test_wrong_masks(mask: Any) -> None:
    graph = graphs.chain(8)
    with pytest.raises(PlanError, match="boolean mask of 8"):
        Plan.from_masks(graph, {graph.groups[0]: mask}, {})


# -- text that nobody vouches for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ("{}", "format"),
        ('{"format": 3}', "format"),
        ('{"format": "fxprune-plan-1"}', "missing entry 'groups'"),
        ('{"format": "fxprune-plan-1", "groups": {}, "settings": {}, "tensors": {}, "x": 1}', "unknown entry 'x'"),
        ('{"format": 1, "format": 2}', "occurs twice"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ('{"ratio": NaN}', "NaN"),
        ("9" * 10_000, "not JSON"),
    ],
)
def test_texts_that_are_no_plan(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        Plan.from_json(text)


@pytest.mark.parametrize(
    "keep",
    ["", "x", "-1", "8", "0-8", "3-1", "2,1", "1,1", "0-3,3", "1,,2", "0-99999999999999999", "٣", " 1", "1.5", 5, [1]],
)
def test_bad_indices(keep: Any) -> None:
    plan = plan_of(graphs.chain(8))
    with pytest.raises(PlanError, match=r"conv0\.weight"):
        Plan.from_json(changed(plan, "tensors", "conv0.weight", "keep", 0, value=keep))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tensors",), []),
        (("tensors", "fc.bias"), 3),
        (("tensors", "fc.bias", "shape"), 10),
        (("tensors", "fc.bias", "shape"), [True]),
        (("tensors", "fc.bias", "shape"), [-1]),
        (("tensors", "fc.bias", "shape"), [10**30]),
        (("tensors", "fc.bias", "shape"), [1] * 100),
        (("tensors", "fc.bias", "keep"), None),
        (("tensors", "fc.bias", "keep"), [None, None]),
        (("groups",), [1]),
        (("groups", "c0"), [0, 1]),
        (("groups", "c0"), "0-4000000000"),
        (("settings",), "ratio"),
    ],
)
def test_bad_types(path: tuple[str, ...], value: Any) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(changed(plan_of(graphs.chain(8)), *path, value=value))


def test_a_forged_range_claims_no_memory() -> None:
    plan = plan_of(graphs.chain(8))
    huge = json.loads(changed(plan, "tensors", "fc.bias", value={"shape": [2**31], "keep": ["0-2147483646"]}))
    with pytest.raises(PlanError, match="more indices than"):
        Plan.from_json(json.dumps(huge))


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"plan.json.*UTF-8"):
        Plan.load(path)
    path.write_text("{}")
    with pytest.raises(PlanError, match=r"plan.json: "):
        Plan.load(path)
    with pytest.raises(FileError):
        Plan.load(tmp_path / "absent.json")


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_round_trip(indices: set[int]) -> None:
    ascending = np.array(sorted(indices), dtype=np.int64)
    assert parse_ranges(write_ranges(ascending), 41, "x", most=41).tolist() == ascending.tolist()


@given(st.text(alphabet="0123456789-, x", max_size=12))
def test_ranges_accept_only_ascending_lists(text: str) -> None:
    try:
        indices = parse_ranges(text, 50, "x", most=50).tolist()
    except PlanError:
        return
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < 50
