"""What one verdict means for a release: pure functions from a test's verdict now, and what is known of it, to a class.

The classes are those of osstest's justification of failures, in this project's words, with what it had no word for: a
feature that is no longer built, a lab that broke, a quarantine with an end. docs/qualification.md has them as a table.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Sequence
from dataclasses import dataclass

from xentests.report.qualification import statistics
from xentests.report.qualification.quarantine import Entry
from xentests.report.qualification.statistics import Rate
from xentests.report.verdict import Verdict


class Effect(enum.StrEnum):
    """What a test's class does to the answer, from nothing to everything."""

    NONE = "none"
    ACCEPT = "to be accepted"
    UNDECIDED = "leaves it undecided"
    FORBIDS = "forbids"


class Class(enum.StrEnum):
    """What a test is, given what is known of it."""

    PASSED = "passed"
    FIXED = "fixed"
    NEW = "new test"
    REGRESSION = "regression"
    LIKE = "fails as in the baseline"
    NEVER = "never passed"
    FLAKY = "flaky"
    KNOWN = "known defect"
    QUARANTINED = "quarantined"
    EXPIRED = "quarantine expired"
    LOST = "no longer built"
    NOT_BUILT = "not built"
    NOT_HERE = "not on this machine"
    BROKEN = "lab broken"
    BLOCKED = "blocked"
    SKIPPED = "skipped"
    NOT_RUN = "not run"


DECIDED = frozenset({Verdict.PASSED, Verdict.FAILED, Verdict.KNOWN})
"""Verdicts that say something of the release itself."""

_FAILING = frozenset({Verdict.FAILED, Verdict.KNOWN})


@dataclass(frozen=True)
class Past:
    """What is known of a test on one architecture, besides its verdict now; verdicts newest first.

    ``same``: earlier ones on this very revision of the release. ``baseline``: on the baseline; ``baseline_name`` is
    empty without one. ``earlier``: on other revisions of the release.
    """

    same: Sequence[Verdict] = ()
    baseline: Sequence[Verdict] = ()
    earlier: Sequence[Verdict] = ()
    baseline_name: str = ""


@dataclass(frozen=True)
class Judgement:
    """A class, what it does to the answer, and why, in one sentence. ``rate`` where a test is flaky."""

    cls: Class
    effect: Effect
    why: str
    rate: Rate | None = None


def judge(now: Verdict | None, past: Past, quarantine: Entry | None, today: datetime.date) -> Judgement:
    """The class of a test whose verdict is ``now``; None when it was to be run and was not."""
    if quarantine is not None and quarantine.until < today:
        return Judgement(
            Class.EXPIRED,
            Effect.UNDECIDED,
            f"its quarantine ended on {quarantine.until}; {quarantine.owner} must mend the test, drop the entry, or "
            f"give a new date and reason (it was: {quarantine.reason})",
        )
    if now is None:
        return Judgement(Class.NOT_RUN, Effect.UNDECIDED, "it was to be run, and the run ended before it")
    if now is Verdict.PASSED:
        return _passed(past)
    if now is Verdict.FAILED:
        if quarantine is not None:
            why = f"fails, in quarantine until {quarantine.until} by {quarantine.owner}: {quarantine.reason}"
            return Judgement(Class.QUARANTINED, Effect.ACCEPT, why)
        return _failed(past)
    return _not_decided(now, past)


def _passed(past: Past) -> Judgement:
    if failed := _count(past.same, Verdict.FAILED):
        rate = statistics.rate(failed, 1 + _decided(past.same))
        return Judgement(Class.FLAKY, Effect.ACCEPT, f"passes now, and on the same revision {rate}", rate)
    newest = _newest(past.baseline)
    if newest in _FAILING:
        return Judgement(Class.FIXED, Effect.NONE, f"passes; {_was(newest)} on {past.baseline_name}")
    if newest is None and not _decided(past.earlier) and not _decided(past.same):
        where = f", nor on {past.baseline_name}" if past.baseline_name else ""
        return Judgement(Class.NEW, Effect.NONE, f"passes; it was not decided on this release before{where}")
    also = f", as on {past.baseline_name}" if newest is Verdict.PASSED else ""
    return Judgement(Class.PASSED, Effect.NONE, f"passes{also}")


def _failed(past: Past) -> Judgement:
    failed, runs = 1 + _count(past.same, Verdict.FAILED), 1 + _decided(past.same)
    before, runs_before = sum(_count(past.baseline, verdict) for verdict in _FAILING), _decided(past.baseline)
    both_now, both_before = failed < runs, 0 < before < runs_before
    if both_now or both_before:
        return _unstable((failed, runs), (before, runs_before), past.baseline_name)
    if before:
        return Judgement(
            Class.LIKE, Effect.ACCEPT, f"fails, and {_was(_newest(past.baseline))} on {past.baseline_name} too"
        )
    again = f", {runs} times of {runs}" if runs > 1 else ""
    if runs_before:
        times = f" ({runs_before} times)" if runs_before > 1 else ""
        why = f"fails{again}; it passed on {past.baseline_name}{times}"
        return Judgement(Class.REGRESSION, Effect.FORBIDS, why)
    if _count(past.earlier, Verdict.PASSED):
        why = f"fails{again}; it passed on an earlier revision of this release"
        return Judgement(Class.REGRESSION, Effect.FORBIDS, f"{why}{_no_baseline(past)}")
    return Judgement(Class.NEVER, Effect.ACCEPT, f"fails{again}; it has never passed{_no_baseline(past)}")


def _unstable(now: tuple[int, int], before: tuple[int, int], name: str) -> Judgement:
    """Both verdicts were seen, on this revision or on the baseline: does it fail more often than there?"""
    rate = statistics.rate(*now)
    if not before[1]:
        return Judgement(Class.FLAKY, Effect.ACCEPT, f"fails now, and on the same revision {rate}", rate)
    p = statistics.fails_more(*now, than=before)
    beside = f"{rate}, on {name} {before[0]} of {before[1]}, Fisher's exact test p={p:.2g}"
    if p < statistics.SIGNIFICANT:
        return Judgement(Class.REGRESSION, Effect.FORBIDS, f"fails more often than in the baseline: {beside}", rate)
    return Judgement(Class.FLAKY, Effect.ACCEPT, f"not shown to fail more often than in the baseline: {beside}", rate)


def _not_decided(now: Verdict, past: Past) -> Judgement:
    newest = _newest(past.baseline)
    if now is Verdict.KNOWN:
        only_here = f"; it passed on {past.baseline_name}" if newest is Verdict.PASSED else ""
        return Judgement(Class.KNOWN, Effect.ACCEPT, f"fails as its test says that it does{only_here}")
    if now is Verdict.NOT_BUILT:
        if newest is not None:
            why = f"was left out of this release, and is in {past.baseline_name}, where it {_was(newest)}"
            return Judgement(Class.LOST, Effect.ACCEPT, why)
        return Judgement(Class.NOT_BUILT, Effect.NONE, "this release was built without it")
    cls, effect, why = _NOT_RUN[now]
    return Judgement(cls, effect, why)


_NOT_RUN = {
    Verdict.BROKEN: (Class.BROKEN, Effect.ACCEPT, "the lab broke under it, which decides nothing"),
    Verdict.BLOCKED: (
        Class.BLOCKED,
        Effect.NONE,
        "what it needs failed in another test, which is judged instead",
    ),
    Verdict.NOT_HERE: (Class.NOT_HERE, Effect.NONE, "the machine lacks what the test needs"),
    Verdict.SKIPPED: (Class.SKIPPED, Effect.NONE, "left out by choice"),
}


def _no_baseline(past: Past) -> str:
    return f", and was not decided on {past.baseline_name}" if past.baseline_name else ""


def _count(verdicts: Sequence[Verdict], verdict: Verdict) -> int:
    return sum(1 for each in verdicts if each is verdict)


def _decided(verdicts: Sequence[Verdict]) -> int:
    return sum(1 for verdict in verdicts if verdict in DECIDED)


def _newest(verdicts: Sequence[Verdict]) -> Verdict | None:
    return next((verdict for verdict in verdicts if verdict in DECIDED), None)


def _was(verdict: Verdict | None) -> str:
    words = {Verdict.PASSED: "passed", Verdict.FAILED: "failed", Verdict.KNOWN: "failed as known"}
    return words[verdict] if verdict is not None else "was not decided"


HIDDEN = "; no test of this feature was decided, so that the lab hides it"


def hidden(judgement: Judgement) -> Judgement:
    """The judgement of a test that the lab broke under, where no other test of its feature was decided."""
    if judgement.cls is not Class.BROKEN:
        return judgement
    return Judgement(judgement.cls, Effect.UNDECIDED, judgement.why + HIDDEN)


class Answer(enum.StrEnum):
    """May it ship?"""

    YES = "may ship"
    CONDITIONAL = "may ship, once its findings are accepted"
    UNDECIDED = "not decided"
    NO = "must not ship"

    @property
    def exit_code(self) -> int:
        """0 may ship, 1 must not, 3 not decided (2 is a wrong call, as everywhere)."""
        return {Answer.YES: 0, Answer.CONDITIONAL: 0, Answer.UNDECIDED: 3, Answer.NO: 1}[self]


def answer(judgements: Sequence[Judgement], *, decided: int) -> Answer:
    """The answer from those of all tests; ``decided`` is how many of them have a verdict on the release."""
    effects = {judgement.effect for judgement in judgements}
    if Effect.FORBIDS in effects:
        return Answer.NO
    if Effect.UNDECIDED in effects or not decided:
        return Answer.UNDECIDED
    return Answer.CONDITIONAL if Effect.ACCEPT in effects else Answer.YES
