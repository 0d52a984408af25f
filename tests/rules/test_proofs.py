"""The pass's own proof agrees with what the oracles found: it accepts every case (a part of them by default)."""

from __future__ import annotations

import pytest

from fxprune.compiling import analyze, apply, report
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.oracles import random_plan
from tests.rules.test_corpus import built, by_name, sampled

# Right by the oracles, but the evaluation with NaN cannot follow them.
NOT_FOLLOWED = {"made/eye", "over channels/all"}
PROVABLE = [case for case in CASES if case.name not in NOT_FOLLOWED]


def check_proof(case: Case) -> None:
    net, args = built(case), sampled(case, 2)
    plan = random_plan(analyze(net, args), 0)
    proof = report(apply(net, args, plan)).proof
    assert proof is not None
    assert proof.relative_error <= proof.tolerance


@pytest.mark.parametrize("case", PROVABLE[::13], ids=by_name)
def test_some_cases_are_proven(case: Case) -> None:
    check_proof(case)


@pytest.mark.deep
@pytest.mark.parametrize("case", PROVABLE, ids=by_name)
def test_all_cases_are_proven(case: Case) -> None:
    check_proof(case)
