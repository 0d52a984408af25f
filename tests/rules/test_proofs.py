"""The pass's own proof agrees with what the oracles found, and no case depends on what anything is called."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fxprune.api import analyze, apply, report
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.oracles import random_plan
from tests.rules.prepared import analysed, by_name, sampled

ONCE_REFUSED = ("made/eye", "over channels/all")
CHOSEN = [*CASES[::13], *(case for case in CASES[1:] if case.name in ONCE_REFUSED)]


def check_proof(case: Case) -> None:
    net, graph = analysed(case)
    proof = report(apply(net, sampled(case, 2), random_plan(graph, 0))).proof
    assert proof is not None
    assert proof.relative_error <= proof.tolerance


@pytest.mark.parametrize("case", CHOSEN, ids=by_name)
def test_some_cases_are_proven(case: Case) -> None:
    check_proof(case)


@pytest.mark.deep
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_all_cases_are_proven(case: Case) -> None:
    check_proof(case)


class Elsewhere(nn.Module):
    """The network under a path of other names."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.zz = nn.ModuleDict({"0": net})

    def forward(self, *args: Any) -> Any:
        return self.zz["0"](*args)


@pytest.mark.parametrize("case", CASES[::11], ids=by_name)
def test_groups_do_not_depend_on_names(case: Case) -> None:
    net, graph = analysed(case)
    other = analyze(Elsewhere(net), sampled(case, 2))
    assert [(g.size, len(g.members)) for g in graph.groups] == [(g.size, len(g.members)) for g in other.groups]
