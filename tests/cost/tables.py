"""Tables whose seconds are computed, so that no test depends on a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxprune.cost.latency import LatencyTable


class MacsTable(LatencyTable):
    """A call takes as many seconds as it has multiply-accumulates, by torch's own counter; all else takes none."""

    def __init__(self) -> None:
        super().__init__({}, None, lambda call: 0.0)
        self.asked: list[str] = []

    def known(self, key: str) -> float | None:
        """Operations in their place take nothing."""
        return 0.0

    def seconds(self, key: str, prepare: Callable[[], Callable[[], object]]) -> float:
        """Counted on the side; the call is made, so that one that torch refuses fails."""
        self.asked.append(key)
        # On the CPU torch counts nothing for the fused attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            prepare()()
        return counter.get_total_flops() / 2


def patch_table(monkeypatch: pytest.MonkeyPatch, table: LatencyTable | None = None) -> LatencyTable:
    """Let the machine's table be this one."""
    chosen = table or MacsTable()
    monkeypatch.setattr(LatencyTable, "of_this_machine", classmethod(lambda cls, device: chosen))
    return chosen
