"""Settings of every test, of the package and of the benchmarks: one thread, seeds, a cache of its own."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest
import torch

# A test that waits for this many seconds waits for ever: a crash names it, a run that never ends does not.
STUCK = 600


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """End the process of a test that is stuck: the report names it."""
    faulthandler.dump_traceback_later(STUCK, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
