"""Defects that released Xens are known to have.

A test asks for what is right, and ends as an expected failure only if what it saw is exactly the known defect. On a Xen
that has been mended it passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xentests.errors import ProductFailure
from xentests.host.host import Host

FAULT = "FATAL PAGE FAULT|Unexpected Trap: Data Abort"
"""What Xen says when it touches memory that is not there: on x86, on Arm."""


@contextmanager
def known_crash(host: Host, pattern: str, why: str) -> Iterator[None]:
    """A block in which Xen must live on; a crash whose lines match ``pattern`` is the defect ``why`` tells of.

    The host is a test's own: after the crash it is lost.
    """
    lived = False
    try:
        with host.console.expect_crash(pattern, timeout_s=0) as crash:
            yield
            lived = True
    except ProductFailure:
        if not lived:
            raise
    if crash.name:
        pytest.xfail(why)
