"""The deliberate faults of the benchmarks are faults of the code as it is."""

from __future__ import annotations

import pytest

from benchmarks.mutation.fault import Fault
from benchmarks.mutation.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_text_that_a_fault_replaces_is_there(fault: Fault) -> None:
    assert fault.faulty_code() != fault.function().__code__
