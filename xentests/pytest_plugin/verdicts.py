"""From the exception of a phase to the verdict, by who must act.

A skip whose reason begins with a finding's own words ("not built: CONFIG_LIVEPATCH is not set") is that finding, so
that tests and fixtures need nothing but ``pytest.skip`` to make one.
"""

from __future__ import annotations

import pytest

from xentests.errors import HypervisorCrash
from xentests.report.verdict import FINDINGS, Verdict, worst

_TIMED_OUT = "Timeout (>"


def verdict_of(error: BaseException | None) -> Verdict:
    """The verdict of a phase that ended in ``error``.

    An assertion means the product is wrong. Everything else that is no skip means the lab or the harness is, the last
    net of pytest-timeout included: whatever hung had a deadline of its own that should have spoken first.
    """
    if error is None:
        return Verdict.PASSED
    if isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception)):
        return _of_reason(str(error.msg))
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    timed_out = isinstance(error, pytest.fail.Exception) and str(error.msg).startswith(_TIMED_OUT)
    failed = isinstance(error, (AssertionError, pytest.fail.Exception)) and not timed_out
    return Verdict.FAILED if failed else Verdict.BROKEN


def _of_reason(reason: str) -> Verdict:
    return next((verdict for verdict in FINDINGS if reason.startswith(f"{verdict}: ")), Verdict.SKIPPED)


def _of_group(group: BaseExceptionGroup[BaseException]) -> Verdict:
    """Of several errors at once (tear-downs): a crash decides; else one that is not the product's leaves it open."""
    if group.subgroup(HypervisorCrash) is not None:
        return Verdict.FAILED
    verdicts = {verdict_of(error) for error in group.exceptions}
    return Verdict.BROKEN if Verdict.BROKEN in verdicts else worst(verdicts)
