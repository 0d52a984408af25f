"""The deliberate faults of the benchmarks are faults of the code as it is, and the proof sees tampered results."""

from __future__ import annotations

import pytest

from fxprune.rewriting import provable
from tests.mutation.faults import FAULTS, Fault
from tests.mutation.tampering import TAMPERINGS, Tampering


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_text_that_a_fault_replaces_is_there(fault: Fault) -> None:
    assert fault.faulty_code() != fault.function().__code__


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=str)
def test_the_proof_sees_a_tampered_result(tampering: Tampering) -> None:
    assert tampering.is_seen()


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=str)
def test_a_run_or_a_comparison_sees_it_without_the_graphs(
    tampering: Tampering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provable, "check_structure", lambda pairs: None)
    assert tampering.is_seen("full")


def test_without_tampering_nothing_is_reported() -> None:
    assert not Tampering("nothing", lambda pruned, model: None).is_seen()
