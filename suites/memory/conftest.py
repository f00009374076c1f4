"""Tests of one size come one after the other: they share a host, and there is room for one such host at a time."""

from __future__ import annotations

import pytest

from fixtures.giants import size_of


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those without a giant first, then from the smallest giant to the largest."""
    items.sort(key=size_of)
