"""In which order selftests run: those with machines first, since they take longest and go to the workers by file.

By file also because a process can open libvirt's embedded driver some 20 times only ("Too many drivers").
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xentests.deadline import PACE

_MACHINES = "selftests/vm/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Machines first; a stable sort, so that the tests of a file stay together."""
    items.sort(key=lambda item: not item.nodeid.startswith(_MACHINES))


@pytest.fixture(autouse=True)
def own_pace() -> Iterator[None]:
    """What machines have shown of this one's pace stretches their own tests' deadlines, and nobody else's."""
    yield
    PACE.forget()
