"""Cleans what pytest is about to show or write of a test: guest text in it is hostile.

Reports of phases go through here before the terminal, JUnit, xdist or Allure see them: messages and tracebacks,
captured output, reasons, properties. Raw bytes are kept in evidence files only. Not for what a test prints itself
under ``-s``.
"""

from __future__ import annotations

from typing import Any

import pytest

from xentests.text import clean, display

SECTION_LIMIT = 100_000
"""Characters kept of one captured stream; the first and the last half."""

_MESSAGE_LIMIT = 20_000
_REASON_LIMIT = 1_000
_PLAIN = (bool, int, float, type(None))


def clean_report(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Clean every text in ``report``, in place. Doing it twice changes nothing."""
    report.sections = [
        (clean(title, limit=200), display(content, limit=SECTION_LIMIT)) for title, content in report.sections
    ]
    if isinstance(report.longrepr, str):
        report.longrepr = display(report.longrepr, limit=_MESSAGE_LIMIT)
    elif isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, display(reason, limit=_REASON_LIMIT))
    elif report.longrepr is not None:
        _clean_object(report.longrepr, set())
    if isinstance(report, pytest.TestReport):
        report.user_properties = [
            (clean(name), value if isinstance(value, _PLAIN) else display(str(value), limit=_REASON_LIMIT))
            for name, value in report.user_properties
        ]
        if hasattr(report, "wasxfail"):
            report.wasxfail = display(str(report.wasxfail), limit=_REASON_LIMIT)


def _clean_object(thing: Any, seen: set[int]) -> None:
    """Clean the strings inside one of pytest's representations of an exception (they are plain, mutable objects)."""
    if id(thing) in seen or not hasattr(thing, "__dict__"):
        return
    seen.add(id(thing))
    for name, value in vars(thing).items():
        setattr(thing, name, _cleaned(value, seen))


def _cleaned(value: Any, seen: set[int]) -> Any:
    if isinstance(value, str):
        return display(value, limit=_MESSAGE_LIMIT)
    if isinstance(value, list):
        value[:] = [_cleaned(part, seen) for part in value]
    elif isinstance(value, tuple):
        return tuple(_cleaned(part, seen) for part in value)
    else:
        _clean_object(value, seen)
    return value
