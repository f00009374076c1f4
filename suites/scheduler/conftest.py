"""The measured scheduler of a test: ``bench``, by the parameter that ``schedulers`` gives."""

from __future__ import annotations

import pytest

from fixtures.scheduling import Bench, Benches
from suites.scheduler.plans import PLANS


@pytest.fixture
def bench(benches: Benches, scheduler: str) -> Bench:
    """What was measured of a scheduler."""
    return benches(PLANS[scheduler])
