"""From records and history to the content of a report: each test judged, each figure compared, findings in sentences.

Reads; runs nothing and writes nothing.
"""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xentests.report.allure_results import subject_of
from xentests.report.history.archive import Execution, Key, by_test
from xentests.report.qualification import quarantine as quarantine_
from xentests.report.qualification import rules, statistics
from xentests.report.qualification.findings import findings_of, reasons_of
from xentests.report.qualification.model import (
    SCHEMA,
    BaselineRow,
    Job,
    NotTested,
    Point,
    Qualification,
    Row,
    Tested,
    Trend,
)
from xentests.report.qualification.quarantine import Entry
from xentests.report.qualification.rules import Judgement, Past
from xentests.report.records import Record

_HISTORY = 7
_POINTS = 30
"""Runs of a figure that are shown and compared."""


@dataclass(frozen=True)
class Now:
    """One test of this qualification; ``record`` is None if it was to be run and was not."""

    nodeid: str
    arch: str
    variant: str
    record: Record | None
    run: str = ""
    revision: str = ""

    @property
    def key(self) -> Key:
        """What makes it the same test in another run."""
        return self.nodeid, self.arch, self.variant


@dataclass(frozen=True)
class Asked:
    """What a report is of. ``only``: the options that chose a part of the profile; empty for all of it."""

    id: str
    release: str
    baseline: str
    profile: str
    started: float
    ended: float
    only: str = ""


@dataclass
class Known:
    """What history knows, newest first. ``release``: of the release, without this qualification; ``baseline``."""

    release: Sequence[Execution] = ()
    baseline: Sequence[Execution] = ()
    quarantine: Sequence[Entry] = ()
    today: datetime.date = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date())


def assemble(
    asked: Asked,
    now: Sequence[Now],
    known: Known,
    *,
    tested: Sequence[Tested] = (),
    jobs: Sequence[Job] = (),
    not_tested: Sequence[NotTested] = (),
) -> Qualification:
    """The whole report. A job with a problem leaves the answer undecided, as it hides what it was to test."""
    before, baseline = by_test(known.release), by_test(known.baseline)
    judgements = {each.key: _judge(each, before, baseline, asked, known) for each in now}
    _lift_hidden(now, judgements)
    rows = [_row(each, judgements[each.key], before, baseline) for each in now]
    rows.sort(key=lambda row: (row.suite, row.feature, row.nodeid, row.arch, row.variant))
    decided = sum(1 for each in now if each.record and each.record.verdict in rules.DECIDED)
    answer = rules.answer(list(judgements.values()), decided=decided)
    troubled = [job for job in jobs if job.problem]
    if troubled and answer is not rules.Answer.NO:
        answer = rules.Answer.UNDECIDED
    findings = findings_of(rows, asked.baseline)
    return Qualification(
        SCHEMA,
        asked.id,
        asked.release,
        asked.baseline,
        asked.profile,
        asked.started,
        asked.ended,
        answer,
        [*reasons_of(answer, rows, troubled, asked.baseline), *_limits(asked)],
        rows,
        _trends(now, before, baseline),
        list(tested),
        list(jobs),
        findings,
        list(not_tested),
        _baseline_rows(baseline, {each.arch for each in now}),
    )


def _limits(asked: Asked) -> list[str]:
    if not asked.only:
        return []
    return [f"only {asked.only} of profile {asked.profile} was asked for: this is the answer for that part"]


def _judge(
    now: Now,
    before: Mapping[Key, list[Execution]],
    baseline: Mapping[Key, list[Execution]],
    asked: Asked,
    known: Known,
) -> Judgement:
    earlier = before.get(now.key, [])
    same = [each.verdict for each in earlier if now.revision and each.revision == now.revision]
    others = [each.verdict for each in earlier if not now.revision or each.revision != now.revision]
    past = Past(same, [each.verdict for each in baseline.get(now.key, [])], others, asked.baseline)
    entry = quarantine_.find(known.quarantine, now.nodeid, asked.release, now.arch)
    return rules.judge(now.record.verdict if now.record else None, past, entry, known.today)


def _lift_hidden(now: Sequence[Now], judgements: dict[Key, Judgement]) -> None:
    """A feature of which the lab left no test decided is hidden by it."""
    decided: dict[tuple[str, str, str], bool] = defaultdict(bool)
    for each in now:
        cell = (each.nodeid.partition("::")[0], each.arch, each.variant)
        decided[cell] |= each.record is not None and each.record.verdict in rules.DECIDED
    for each in now:
        if not decided[each.nodeid.partition("::")[0], each.arch, each.variant]:
            judgements[each.key] = rules.hidden(judgements[each.key])


def _row(
    now: Now, judgement: Judgement, before: Mapping[Key, list[Execution]], baseline: Mapping[Key, list[Execution]]
) -> Row:
    subject, record = subject_of(now.nodeid, None), now.record
    theirs = baseline.get(now.key, [])
    evidence = f"{now.run}/{record.evidence}" if record and record.evidence and now.run else ""
    return Row(
        now.nodeid,
        subject.epic,
        subject.feature,
        (record.title if record else "") or subject.title,
        now.arch,
        now.variant,
        record.verdict if record else None,
        judgement.cls,
        judgement.effect,
        judgement.why,
        record.seconds if record else 0.0,
        record.message if record else "",
        now.run,
        evidence,
        theirs[0].verdict if theirs else None,
        theirs[0].run if theirs else "",
        [each.verdict for each in before.get(now.key, [])[:_HISTORY]],
        str(judgement.rate) if judgement.rate else "",
        record.started if record else 0.0,
    )


def _trends(
    now: Sequence[Now], before: Mapping[Key, list[Execution]], baseline: Mapping[Key, list[Execution]]
) -> list[Trend]:
    trends = []
    for each in now:
        if each.record is None:
            continue
        earlier, theirs = before.get(each.key, []), baseline.get(each.key, [])
        for name, value in each.record.figures.items():
            points = [
                Point(past.started, past.run, past.revision, past.figures[name])
                for past in reversed(earlier[: _POINTS - 1])
                if name in past.figures
            ]
            here = Point(each.record.started, each.run.rpartition("/")[2], each.revision, value)
            values = [point.value for point in [*points, here] if point.revision == each.revision]
            was = [past.figures[name] for past in reversed(theirs[:_POINTS]) if name in past.figures]
            change = statistics.compare(values, was) if was else None
            trends.append(
                Trend(
                    each.nodeid,
                    each.arch,
                    each.variant,
                    name,
                    [*points, here],
                    was,
                    str(change) if change else "",
                    change.significant if change else False,
                )
            )
    return trends


def _baseline_rows(baseline: Mapping[Key, list[Execution]], arches: set[str]) -> list[BaselineRow]:
    rows = []
    for (nodeid, arch, variant), executions in sorted(baseline.items()):
        if arch in arches:
            subject = subject_of(nodeid, None)
            rows.append(BaselineRow(nodeid, subject.epic, subject.feature, arch, variant, executions[0].verdict))
    return rows


def asked_now(id_: str, release: str, baseline: str, profile: str, started: float, *, only: str = "") -> Asked:
    """What a report that ends now is of."""
    return Asked(id_, release, baseline, profile, started, time.time(), only)
