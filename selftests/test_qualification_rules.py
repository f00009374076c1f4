"""What a verdict means, for every pair of what is known of a test and what it says now."""

from __future__ import annotations

import datetime
from itertools import product

import pytest

from xentests.report.qualification.quarantine import Entry
from xentests.report.qualification.rules import (
    Answer,
    Class,
    Effect,
    Judgement,
    Past,
    answer,
    hidden,
    judge,
)
from xentests.report.verdict import Verdict

TODAY = datetime.date(2026, 11, 26)
P, F, K, B, N = Verdict.PASSED, Verdict.FAILED, Verdict.KNOWN, Verdict.BROKEN, Verdict.NOT_BUILT

# What the same revision has said before, by column; what the baseline has, by row.
SAME = {"-": (), "P": (P,), "F": (F,), "PF": (P, F), "B": (B,)}
BASELINE = {
    "nothing": (),
    "passed": (P, P),
    "failed": (F, F),
    "known": (K,),
    "broken": (B,),
    "not built": (N,),
    "flaky": (F, P, P, P),
    "lately passed": (P, F),
}
EARLIER = {"never seen": (), "passed once": (F, P), "failed": (F, F)}

# Letters of classes, for the tables below.
LETTERS = {
    "p": (Class.PASSED, Effect.NONE),
    "n": (Class.NEW, Effect.NONE),
    "x": (Class.FIXED, Effect.NONE),
    "f": (Class.FLAKY, Effect.ACCEPT),
    "R": (Class.REGRESSION, Effect.FORBIDS),
    "l": (Class.LIKE, Effect.ACCEPT),
    "v": (Class.NEVER, Effect.ACCEPT),
}

# On earlier revisions: never seen, passed once, failed; for each the columns of SAME.
PASSES_NOW = """
nothing        n p f f n   p p f f p   p p f f p
passed         p p f f p   p p f f p   p p f f p
failed         x x f f x   x x f f x   x x f f x
known          x x f f x   x x f f x   x x f f x
broken         n p f f n   p p f f p   p p f f p
not built      n p f f n   p p f f p   p p f f p
flaky          x x f f x   x x f f x   x x f f x
lately passed  p p f f p   p p f f p   p p f f p
"""
FAILS_NOW = """
nothing        v f v f v   R f R f R   v f v f v
passed         R f R f R   R f R f R   R f R f R
failed         l f l f l   l f l f l   l f l f l
known          l f l f l   l f l f l   l f l f l
broken         v f v f v   R f R f R   v f v f v
not built      v f v f v   R f R f R   v f v f v
flaky          f f f f f   f f f f f   f f f f f
lately passed  f f f f f   f f f f f   f f f f f
"""


def cells(table: str) -> dict[tuple[str, str, str], str]:
    found = {}
    for line in table.strip().splitlines():
        name, letters = line[:15].strip(), line[15:].split()
        for (earlier, same), letter in zip(product(EARLIER, SAME), letters, strict=True):
            found[name, earlier, same] = letter
    return found


TABLE = [
    pytest.param(now, *key, letter, id=f"{now}-{'-'.join(key)}")
    for now, table in ((P, PASSES_NOW), (F, FAILS_NOW))
    for key, letter in cells(table).items()
]


def test_the_tables_have_every_pair() -> None:
    assert len(TABLE) == 2 * len(BASELINE) * len(EARLIER) * len(SAME)


@pytest.mark.parametrize(("now", "baseline", "earlier", "same", "letter"), TABLE)
def test_decided_now(now: Verdict, baseline: str, earlier: str, same: str, letter: str) -> None:
    """A test that passes or fails, whatever is known of it."""
    past = Past(SAME[same], BASELINE[baseline], EARLIER[earlier], "debian:bookworm")
    found = judge(now, past, None, TODAY)
    assert (found.cls, found.effect) == LETTERS[letter]
    assert found.why
    assert (found.rate is not None) == (found.cls is Class.FLAKY)


UNDECIDED_NOW = {
    (Verdict.KNOWN, "any"): (Class.KNOWN, Effect.ACCEPT),
    (Verdict.NOT_BUILT, "decided"): (Class.LOST, Effect.ACCEPT),
    (Verdict.NOT_BUILT, "undecided"): (Class.NOT_BUILT, Effect.NONE),
    (Verdict.NOT_HERE, "any"): (Class.NOT_HERE, Effect.NONE),
    (Verdict.BROKEN, "any"): (Class.BROKEN, Effect.ACCEPT),
    (Verdict.BLOCKED, "any"): (Class.BLOCKED, Effect.NONE),
    (Verdict.SKIPPED, "any"): (Class.SKIPPED, Effect.NONE),
    (None, "any"): (Class.NOT_RUN, Effect.UNDECIDED),
}


@pytest.mark.parametrize("baseline", BASELINE)
@pytest.mark.parametrize("same", SAME)
@pytest.mark.parametrize(("now", "of"), UNDECIDED_NOW)
def test_undecided_now(now: Verdict | None, of: str, same: str, baseline: str) -> None:
    """A test that says nothing of the release: what it is depends on the baseline at most."""
    decided = bool({P, F, K} & set(BASELINE[baseline]))
    if of != "any" and (of == "decided") != decided:
        return
    found = judge(now, Past(SAME[same], BASELINE[baseline], (), "debian:bookworm"), None, TODAY)
    assert (found.cls, found.effect) == UNDECIDED_NOW[now, of]


def test_every_verdict_is_in_a_table() -> None:
    assert {*Verdict, None} == {P, F} | {now for now, _ in UNDECIDED_NOW}


def test_why_names_the_baseline_and_the_numbers() -> None:
    """A stranger reads why, without the table."""
    regression = judge(F, Past((F,), (P, P, P), (), "debian:bookworm"), None, TODAY)
    assert regression.why == "fails, 2 times of 2; it passed on debian:bookworm (3 times)"
    flaky = judge(F, Past((P, P, P, P, P, P, P, P, P), (), (), ""), None, TODAY)
    assert flaky.why == "fails now, and on the same revision 1 of 10 failed (2 to 40 % at 95 % confidence)"


def test_flaky_before_and_worse_now_is_a_regression() -> None:
    """Flakiness excuses nothing that has become much more frequent."""
    found = judge(F, Past((F,) * 8 + (P,), (F,) + (P,) * 29, (), "debian:bookworm"), None, TODAY)
    assert (found.cls, found.effect) == (Class.REGRESSION, Effect.FORBIDS)
    assert "Fisher" in found.why


ENTRY = Entry("suites/x.py::test_y", "jane", "https://bugs/1", TODAY)


@pytest.mark.parametrize("baseline", BASELINE)
def test_quarantine_excuses_a_failure_and_nothing_else(baseline: str) -> None:
    past = Past((), BASELINE[baseline], (), "b")
    assert judge(F, past, ENTRY, TODAY).cls is Class.QUARANTINED
    assert judge(F, past, ENTRY, TODAY).effect is Effect.ACCEPT
    assert judge(P, past, ENTRY, TODAY) == judge(P, past, None, TODAY)
    assert judge(B, past, ENTRY, TODAY) == judge(B, past, None, TODAY)
    assert judge(None, past, ENTRY, TODAY).cls is Class.NOT_RUN


@pytest.mark.parametrize("now", [*Verdict, None])
def test_quarantine_ends(now: Verdict | None) -> None:
    """The day after its last, it is an error, whatever the test says."""
    found = judge(now, Past(), ENTRY, TODAY + datetime.timedelta(days=1))
    assert (found.cls, found.effect) == (Class.EXPIRED, Effect.UNDECIDED)
    assert "jane" in found.why
    assert "2026-11-26" in found.why


def test_a_lab_that_hides_a_feature_leaves_it_open() -> None:
    broken = judge(B, Past(), None, TODAY)
    assert hidden(broken).effect is Effect.UNDECIDED
    passed = judge(P, Past(), None, TODAY)
    assert hidden(passed) is passed


def made(effect: Effect) -> Judgement:
    return Judgement(Class.PASSED, effect, "")


@pytest.mark.parametrize(
    ("effects", "decided", "wanted"),
    [
        ([], 0, Answer.UNDECIDED),
        ([Effect.NONE], 0, Answer.UNDECIDED),
        ([Effect.NONE], 1, Answer.YES),
        ([Effect.NONE, Effect.ACCEPT], 1, Answer.CONDITIONAL),
        ([Effect.ACCEPT, Effect.UNDECIDED], 1, Answer.UNDECIDED),
        ([Effect.UNDECIDED, Effect.FORBIDS, Effect.NONE], 1, Answer.NO),
        ([Effect.FORBIDS], 1, Answer.NO),
    ],
)
def test_the_answer(effects: list[Effect], decided: int, wanted: Answer) -> None:
    assert answer([made(effect) for effect in effects], decided=decided) is wanted


def test_exit_codes_are_never_those_of_a_wrong_call() -> None:
    assert {each: each.exit_code for each in Answer} == {
        Answer.YES: 0,
        Answer.CONDITIONAL: 0,
        Answer.UNDECIDED: 3,
        Answer.NO: 1,
    }
