"""What the record of a test is made from: gathered over its phases, handed over when the last one has ended."""

from __future__ import annotations

import pytest

from xentests.report.figures import PREFIX
from xentests.report.records import MESSAGE_LIMIT, Record, plain_nodeid
from xentests.report.verdict import Verdict, worst
from xentests.text import display


class Account:
    """One test under way."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._seconds = 0.0
        self._verdict = Verdict.PASSED
        self._message = ""

    def add(self, report: pytest.TestReport, verdict: Verdict, *, began: float, note: str = "") -> None:
        """A phase has ended: its report, cleaned, its verdict, and what is to be known before its message."""
        self._began = began if self._began is None else self._began
        self._seconds += report.duration
        heavier = worst((self._verdict, verdict))
        if heavier is not self._verdict:
            message = _message(report)
            self._message = display(f"{note}\n{message}" if note else message, limit=MESSAGE_LIMIT)
        self._verdict = heavier

    def record(self, item: pytest.Item, *, title: str, evidence: str) -> Record:
        """The test as a whole."""
        measured = {
            name.removeprefix(PREFIX): float(value)
            for name, value in item.user_properties
            if name.startswith(PREFIX) and isinstance(value, (int, float))
        }
        return Record(
            plain_nodeid(item.nodeid),
            self._verdict,
            self._began or 0.0,
            round(self._seconds, 3),
            title=title,
            message=self._message,
            evidence=evidence,
            figures=measured,
        )


def _message(report: pytest.TestReport) -> str:
    """Why a phase did not pass, without its traceback."""
    if hasattr(report, "wasxfail") and report.skipped:
        text = str(report.wasxfail).removeprefix("reason: ")
    elif isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(report.longrepr or "")
    return text
