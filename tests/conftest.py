"""Settings of every test run: hypothesis profiles, one thread, seeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

SLOW_DRAWS = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
)
settings.register_profile("fast", max_examples=60, deadline=None, suppress_health_check=SLOW_DRAWS, derandomize=True)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=SLOW_DRAWS)
settings.load_profile("fast")


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    """Results must not depend on the order of tests or on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Tensors and containers are named by their argument: their values would differ between worker processes."""
    return None if val is None or isinstance(val, (str, int, float, bool, type)) or callable(val) else argname
