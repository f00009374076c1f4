"""Where selftests run when there are several workers: those with machines on one, beginning first; others by file."""

from __future__ import annotations

import pytest

_MACHINES = "selftests/vm/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group them for ``--dist loadgroup``, which hands out groups in the order of their first test.

    Two machines' tests side by side would meet in the lab's admission; together they take longer than all others.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(_MACHINES))
    for item in items:
        group = "machines" if item.nodeid.startswith(_MACHINES) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
