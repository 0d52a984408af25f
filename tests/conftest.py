"""Settings of every test run: hypothesis profiles, one thread, seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.nets.reach import Reach

SLOW_DRAWS = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
)
settings.register_profile("fast", max_examples=60, deadline=None, suppress_health_check=SLOW_DRAWS, derandomize=True)
# How many networks a test of the deep profile draws, and where to write which rules they reached.
EXAMPLES = int(os.environ.get("FXPRUNE_EXAMPLES", "2000"))
REACH_FILE = os.environ.get("FXPRUNE_REACH", "")
settings.register_profile("deep", max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW_DRAWS)
settings.load_profile("fast")
_reach = Reach()


def pytest_configure() -> None:
    """Count rules from the start where that is asked for."""
    if REACH_FILE:
        _reach.install()


def pytest_sessionfinish() -> None:
    """Write the counts down."""
    if REACH_FILE:
        _reach.save(Path(REACH_FILE))


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    """Results must not depend on the order of tests or on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FXPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Tensors and containers are named by their argument: their values would differ between worker processes."""
    return None if val is None or isinstance(val, (str, int, float, bool, type)) or callable(val) else argname
