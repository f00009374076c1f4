"""What selftests share: a browser, and their order: those with machines first, for they take longest and go by file.

By file also because a process can open libvirt's embedded driver some 20 times only ("Too many drivers").
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from xentests.deadline import PACE
from xentests.errors import LabError

_MACHINES = "selftests/vm/"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Machines first; a stable sort, so that the tests of a file stay together."""
    items.sort(key=lambda item: not item.nodeid.startswith(_MACHINES))


@pytest.fixture(autouse=True)
def own_pace() -> Iterator[None]:
    """What machines have shown of this one's pace stretches their own tests' deadlines, and nobody else's."""
    yield
    PACE.forget()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, which ``./bootstrap.sh selftests`` installs."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - most selftests need none

    chromium = shutil.which("chromium")
    if chromium is None:
        raise LabError("chromium is not installed: apt-get install chromium, or ./bootstrap.sh selftests")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield started
        started.close()
