"""Findings in sentences for a release manager: rows of one class and one reason become one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from xentests.report.qualification.model import Finding, Job, Row
from xentests.report.qualification.rules import Answer, Class, Effect

_ORDER = {effect: number for number, effect in enumerate(reversed(Effect))}
_QUIET = frozenset({Class.PASSED, Class.NEW, Class.SKIPPED, Class.BLOCKED})
_LONGEST = 300


def findings_of(rows: Sequence[Row], baseline: str) -> list[Finding]:
    """The findings, the gravest first; of equal gravity the one with most tests."""
    groups: dict[tuple[Class, Effect, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.cls not in _QUIET:
            groups[row.cls, row.effect, _reason(row)].append(row)
    found = [
        Finding(_sentence(cls, reason, of, baseline), effect, [f"{row.nodeid} ({_where(row)})" for row in of])
        for (cls, effect, reason), of in groups.items()
    ]
    return sorted(found, key=lambda finding: (_ORDER[finding.effect], -len(finding.tests), finding.text))


def _reason(row: Row) -> str:
    """What tests of one finding have in common."""
    said = _first_line(row.message)
    for prefix in (f"{Class.NOT_BUILT}: ", f"{Class.NOT_HERE}: "):
        said = said.removeprefix(prefix)
    if row.cls in (Class.FIXED, Class.NOT_RUN):
        return row.feature
    if row.cls in (Class.REGRESSION, Class.FLAKY, Class.EXPIRED, Class.QUARANTINED):
        return row.nodeid
    return said or row.nodeid


def _sentence(cls: Class, reason: str, rows: Sequence[Row], baseline: str) -> str:  # noqa: PLR0911 - one a class
    first = rows[0]
    what = f"{first.suite}, {first.feature}: {first.title}"
    where = ", ".join(dict.fromkeys(_where(row) for row in rows))
    tests = f"{len(rows)} test{'s' if len(rows) > 1 else ''} of {_suites(rows)}, {where}"
    if cls in (Class.REGRESSION, Class.FLAKY, Class.EXPIRED, Class.QUARANTINED):
        said = f": {_first_line(first.message)}" if first.message and cls is Class.REGRESSION else ""
        return f"{what} ({where}): {first.why}{said}"
    if cls is Class.LOST:
        return f"Left out of this release, and in {baseline}: {reason} ({tests})"
    if cls is Class.NOT_BUILT:
        return f"Not built: {reason} ({tests})"
    if cls is Class.NOT_HERE:
        return f"Not to be tested on this machine: {reason} ({tests})"
    if cls is Class.BROKEN:
        return f"The lab broke: {reason} ({tests})"
    if cls is Class.NOT_RUN:
        return f"{first.suite}, {reason}: not run ({tests})"
    if cls is Class.FIXED:
        return f"{first.suite}, {reason}: fixed since {baseline} ({tests})"
    if cls is Class.KNOWN:
        return f"Known defect: {reason} ({tests})"
    return f"{str(cls).capitalize()}: {reason} ({tests})"


def _suites(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(row.suite for row in rows))


def _where(row: Row) -> str:
    return f"{row.arch}, {row.variant}" if row.variant else row.arch


def _first_line(text: str) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def reasons_of(answer: Answer, rows: Sequence[Row], troubled: Sequence[Job], baseline: str) -> list[str]:
    """Why the answer is what it is, a sentence each, the decisive ones first."""
    counts: dict[tuple[Effect, Class], int] = defaultdict(int)
    for row in rows:
        counts[row.effect, row.cls] += 1
    words = {Effect.FORBIDS: "forbids it", Effect.UNDECIDED: "leaves it open", Effect.ACCEPT: "is to be accepted"}
    reasons = [
        f"{count} {'test' if count == 1 else 'tests'}: {cls}, which {words[effect]}"
        for (effect, cls), count in sorted(counts.items(), key=lambda item: (_ORDER[item[0][0]], -item[1]))
        if effect in words
    ]
    reasons += [f"job {job.name}: {job.problem}, which leaves it open" for job in troubled]
    if answer is Answer.UNDECIDED and not reasons:
        reasons.append("no test was decided")
    if not reasons:
        against = f"nothing is worse than in {baseline}" if baseline else "there was no baseline to compare with"
        reasons.append(f"{len(rows)} tests, and {against}")
    return reasons
