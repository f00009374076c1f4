"""Verdicts of a test, in this project's words. How an exception becomes one is the plugin's business."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Verdict(enum.StrEnum):
    """What a test says of the release; the values are what reports show.

    ``FAILED``: the product is wrong. ``BROKEN``: the lab is, and nothing is decided; never green. ``NOT_BUILT``: the
    release lacks a capability the test needs; ``NOT_HERE``: the machine does. ``BLOCKED``: not run, because what it
    needs failed in an earlier test, which says so. ``KNOWN``: it failed as its ``xfail`` marker says: a known defect.
    """

    PASSED = "passed"
    KNOWN = "known defect"
    SKIPPED = "skipped"
    NOT_HERE = "not on this machine"
    NOT_BUILT = "not built"
    BLOCKED = "blocked"
    BROKEN = "broken"
    FAILED = "failed"

    @property
    def allure_status(self) -> str:
        """The status among those Allure knows."""
        return "skipped" if self in FINDINGS or self is Verdict.KNOWN else self.value


FINDINGS = frozenset({Verdict.NOT_HERE, Verdict.NOT_BUILT, Verdict.BLOCKED})
"""Tests that were not run for a reason which is a finding of its own, not somebody's choice."""


_WEIGHT = {verdict: weight for weight, verdict in enumerate(Verdict)}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a test from those of its phases: a product failure seen once stands, whatever broke afterwards."""
    return max(verdicts, key=_WEIGHT.__getitem__, default=Verdict.PASSED)
