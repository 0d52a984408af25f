"""Settings of every test run: hypothesis profiles, and which rules are reached."""

from __future__ import annotations

import os
from pathlib import Path

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
