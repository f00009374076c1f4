"""A session of the lab for selftests of the lab itself, below the fixtures that suites use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from xentests.session import Options, Session


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where these machines log."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def session(runs: Path) -> Iterator[Session]:
    """The default release on x86-64."""
    with Session(Options(run_dir=runs)) as made:
        yield made
