"""From history to the report's content: judgements, figures, findings; and 10,000 executions in seconds."""

from __future__ import annotations

import dataclasses
import datetime
import random
import time
from pathlib import Path

import pytest

from selftests.test_history import made
from xentests.report.history import archive, database
from xentests.report.history.archive import Execution
from xentests.report.qualification import page, statistics
from xentests.report.qualification.assemble import Asked, Known, Now, assemble
from xentests.report.qualification.model import Job, NotTested
from xentests.report.qualification.rules import Answer, Class, Effect
from xentests.report.records import Record
from xentests.report.verdict import Verdict

TODAY = datetime.date(2026, 11, 26)
ASKED = Asked("qualify-x", "debian:trixie", "debian:bookworm", "nightly", 0.0, 60.0)


def now(test: str, verdict: Verdict | None = Verdict.PASSED, message: str = "", **figures: float) -> Now:
    nodeid = f"suites/{test}"
    kept = Record(nodeid, verdict, 1000.0, 1.0, message=message, figures=figures) if verdict else None
    return Now(nodeid, "amd64", "", kept, "runs/a/r", "rev2")


def past(
    test: str,
    verdict: Verdict = Verdict.PASSED,
    *,
    release: str = "debian:bookworm",
    rev: str = "rev1",
    **figures: float,
) -> Execution:
    return Execution(f"suites/{test}", verdict, 1.0, 1.0, "", "", "r", release, "amd64", "", rev, "", figures)


def made_of(tests: list[Now], known: Known, jobs: list[Job] | None = None) -> tuple[Answer, dict[str, Class]]:
    found = assemble(ASKED, tests, known, jobs=jobs or [])
    return found.answer, {row.nodeid.removeprefix("suites/"): row.cls for row in found.rows}


def test_only_the_same_revision_makes_flaky() -> None:
    """A pass on yesterday's build does not excuse a failure of today's."""
    tests = [now("a/test_b.py::test_x", Verdict.FAILED), now("a/test_b.py::test_y", Verdict.FAILED)]
    before = [
        past("a/test_b.py::test_x", release="debian:trixie", rev="rev2"),
        past("a/test_b.py::test_y", release="debian:trixie", rev="rev1"),
    ]
    answer, classes = made_of(tests, Known(before, [], [], TODAY))
    assert classes == {"a/test_b.py::test_x": Class.FLAKY, "a/test_b.py::test_y": Class.REGRESSION}
    assert answer is Answer.NO


def test_a_part_of_a_profile_says_so() -> None:
    """An answer that is about less than the profile has that among its reasons."""
    part = dataclasses.replace(ASKED, only="--suite smoke")
    (whole, *none), (same, limit) = (
        assemble(asked, [now("a/test_b.py::test_x")], Known()).reasons for asked in (ASKED, part)
    )
    assert (whole, none) == (same, [])
    assert limit == "only --suite smoke of profile nightly was asked for: this is the answer for that part"


def test_another_architecture_is_another_test() -> None:
    arm = Execution(
        "suites/a/test_b.py::test_x", Verdict.PASSED, 1, 1, "", "", "r", "debian:bookworm", "arm64", "", "r", ""
    )
    _, classes = made_of([now("a/test_b.py::test_x", Verdict.FAILED)], Known([], [arm], [], TODAY))
    assert classes == {"a/test_b.py::test_x": Class.NEVER}


def test_a_feature_that_the_lab_hides() -> None:
    """A module of which nothing was decided leaves it open; one broken test among decided ones does not."""
    passed, broken = now("a/test_b.py::test_x"), now("a/test_b.py::test_y", Verdict.BROKEN)
    assert made_of([passed, broken], Known(today=TODAY))[0] is Answer.CONDITIONAL
    alone = now("a/test_c.py::test_y", Verdict.BROKEN)
    assert made_of([passed, alone], Known(today=TODAY))[0] is Answer.UNDECIDED


def test_a_job_with_a_problem_leaves_it_open() -> None:
    job = Job("smoke-amd64", "smoke", "amd64", "", 1.0, 2, 0, 3, "its pytest ended with 3")
    assert made_of([now("a/test_b.py::test_x")], Known(today=TODAY), [job])[0] is Answer.UNDECIDED


def test_what_did_not_run_leaves_it_open() -> None:
    tests = [now("a/test_b.py::test_x"), now("a/test_b.py::test_y", None)]
    assert made_of(tests, Known(today=TODAY)) == (
        Answer.UNDECIDED,
        {"a/test_b.py::test_x": Class.NEW, "a/test_b.py::test_y": Class.NOT_RUN},
    )


def test_findings_are_sentences() -> None:
    """Tests of one reason are one finding, the gravest first."""
    reason = "not built: CONFIG_SHADOW_PAGING is not set"
    tests = [
        now("a/test_b.py::test_1", Verdict.NOT_BUILT, reason),
        now("a/test_b.py::test_2", Verdict.NOT_BUILT, reason),
        now("a/test_b.py::test_3", Verdict.KNOWN, "PV guests cannot be live-migrated"),
        now("a/test_b.py::test_4", Verdict.FAILED, "the guest was lost\nmore"),
        now("a/test_b.py::test_5"),
    ]
    known = Known(
        [], [past("a/test_b.py::test_4"), past("a/test_b.py::test_1"), past("a/test_b.py::test_2")], [], TODAY
    )
    found = assemble(ASKED, tests, known)
    assert [(finding.effect, finding.text) for finding in found.findings] == [
        (Effect.FORBIDS, "A, B: 4 (amd64): fails; it passed on debian:bookworm: the guest was lost"),
        (
            Effect.ACCEPT,
            "Left out of this release, and in debian:bookworm: CONFIG_SHADOW_PAGING is not set (2 tests of A, amd64)",
        ),
        (Effect.ACCEPT, "Known defect: PV guests cannot be live-migrated (1 test of A, amd64)"),
    ]
    assert found.reasons[0] == "1 test: regression, which forbids it"


@pytest.mark.parametrize(
    ("values", "changed", "says"),
    [
        ([0.7], False, "too few to tell from noise"),
        ([0.51, 0.49, 0.5, 0.52, 0.48], False, "no change to look into"),
        ([0.40, 0.62, 0.54, 0.45, 0.61], False, "within noise"),
        ([0.9, 0.95, 1.0, 1.05, 0.92], True, "a change"),
    ],
)
def test_figures_are_compared_with_the_baseline(values: list[float], changed: bool, says: str) -> None:
    test = "a/test_b.py::test_x"
    before = [past(test, release="debian:trixie", rev="rev2", size=value) for value in values[1:]]
    baseline = [past(test, size=value) for value in (0.47, 0.5, 0.53, 0.49, 0.51, 0.5)]
    found = assemble(ASKED, [now(test, size=values[0])], Known(before, baseline, [], TODAY))
    (trend,) = found.trends
    assert trend.changed is changed
    assert says in trend.says
    assert [point.value for point in trend.points] == [*reversed(values[1:]), values[0]]
    assert found.answer in (Answer.YES, Answer.CONDITIONAL)  # figures decide nothing


def test_false_alarms_of_figures_are_rare() -> None:
    """Of 2000 figures that have not changed, about one in a hundred at most is taken for a change."""
    chance = random.Random(1)
    alarms = 0
    for _ in range(2000):
        values = [chance.gauss(100, 10) for _ in range(12)]
        alarms += statistics.compare(values[:5], values[5:]).significant
    assert alarms <= 30


def test_ten_thousand_executions_take_seconds(tmp_path: Path) -> None:
    """A history of 10,000, judged and written: under 5 s, under 5 MB."""
    chance = random.Random(2)
    tests = [f"suites/area{n % 8}/test_m{n % 40}.py::test_case[{n}]" for n in range(1250)]
    with database.opened(str(tmp_path / "history.sqlite")) as engine:
        for night in range(8):
            kept = [
                Record(
                    nodeid,
                    Verdict.FAILED if chance.random() < 0.02 else Verdict.PASSED,
                    night * 1e5 + number,
                    1.0,
                    title=f"What number {number} is about",
                    message="it did not come up within 120 s; last seen: paused",
                    figures={"downtime, s": chance.gauss(1, 0.1)} if number % 3 == 0 else {},
                )
                for number, nodeid in enumerate(tests)
            ]
            release = "debian:bookworm" if night < 4 else "debian:trixie"
            archive.add_run(engine, made(tmp_path, f"2026010{night + 1}-000000-aaaaaa", *kept, release=release))
    started = time.monotonic()
    with database.opened(str(tmp_path / "history.sqlite")) as engine:
        known = Known(
            archive.executions(engine, "debian:trixie", figures=True),
            archive.executions(engine, "debian:bookworm", figures=True),
            [],
            TODAY,
        )
    tests_now = [Now(record.nodeid, "amd64", "", record, "runs/a/r", "4.20-1 abc") for record in kept]
    found = assemble(ASKED, tests_now, known, not_tested=[NotTested("x", "y")])
    page.write(found, tmp_path / "index.html")
    took = time.monotonic() - started
    size = (tmp_path / "index.html").stat().st_size
    assert len(known.release) + len(known.baseline) == 10_000
    assert len(found.trends) == 417
    assert size < 5 << 20, f"{size >> 20} MiB"
    assert took < 5, f"{took:.1f} s"
