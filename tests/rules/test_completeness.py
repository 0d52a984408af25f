"""The corpus reaches every rule and every module form, and no case depends on what anything is called."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from torch import nn

from fxprune.analysis import ChannelGraph
from fxprune.compiling import analyze
from fxprune.rules import rule_names
from fxprune.rules.registry import module_forms
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.test_corpus import built, by_name, sampled

# They need a device or a channel dim that a small network on the CPU does not have.
NOT_REACHED = {"cuda"}


class Elsewhere(nn.Module):
    """The network under a path of other names."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.zz = nn.ModuleDict({"0": net})

    def forward(self, *args: Any) -> Any:
        return self.zz["0"](*args)


@cache
def analysed() -> tuple[tuple[nn.Module, ChannelGraph], ...]:
    """Every case, once."""
    return tuple((net, analyze(net, sampled(case, 2))) for case in CASES for net in [built(case)])


def leaf_classes() -> Iterator[type[nn.Module]]:
    """The classes of all modules that stay one call."""
    for net, graph in analysed():
        for node in graph.calls:
            if node.op == "call_module":
                yield type(net.get_submodule(str(node.target)))


def test_every_rule_is_reached() -> None:
    reached = {call.name for _, graph in analysed() for call in graph.calls.values()}
    assert set(rule_names()) - reached == NOT_REACHED


def test_every_module_form_is_reached() -> None:
    reached = {cls.forward for cls in leaf_classes()}
    missing = [cls.__name__ for cls in module_forms() if cls.forward not in reached]
    assert missing == []


def test_there_are_enough_cases_and_each_has_its_own_name() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) > 100


@pytest.mark.parametrize("case", CASES[::7], ids=by_name)
def test_groups_do_not_depend_on_names(case: Case) -> None:
    net, args = built(case), sampled(case, 2)
    here, there = analyze(net, args), analyze(Elsewhere(net), args)
    assert [(g.size, len(g.members)) for g in here.groups] == [(g.size, len(g.members)) for g in there.groups]
