"""Noisy binary search: it finds, in few runs, as surely as it says; skipped commits; ends that do not differ."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xentests.bisect.search import GOOD_END, Finding, Search

Test = Callable[[int], bool]
"""Whether the test fails on the commit of an index."""


@dataclass(frozen=True)
class Done:
    found: Finding
    runs: int
    asked: list[int]
    search: Search

    @property
    def decided(self) -> bool:
        return self.found.sure >= self.search.confidence


def searched(count: int, fails: Test, *, skip: Collection[int] = (), confidence: float = 0.99, most: int = 400) -> Done:
    """A search, its ends run twice each first."""
    search = Search(count, confidence=confidence)
    asked: list[int] = []

    def run(index: int) -> None:
        asked.append(index)
        if index in skip:
            search.skip(index)
        else:
            search.observe(index, failed=fails(index))

    for end in (GOOD_END, count - 1) * 2:
        run(end)
    while len(asked) < most and (index := search.next_commit()) is not None:
        run(index)
    return Done(search.finding(), len(asked), asked, search)


def flaky(culprit: int, seed: random.Random, *, false_alarm: float, escape: float) -> Test:
    return lambda index: seed.random() >= escape if index >= culprit else seed.random() < false_alarm


@given(st.integers(1, 1000).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))))
@settings(deadline=None, max_examples=40)
def test_a_reliable_test_takes_a_logarithm_and_some_repeats(case: tuple[int, int]) -> None:
    """The culprit of any line of commits, in the runs of plain bisection, four for the ends and some to be sure."""
    count, culprit = case
    done = searched(count, lambda index: index >= culprit)
    assert done.decided
    assert (done.found.first, done.found.last) == (culprit, culprit)
    assert done.runs <= math.ceil(math.log2(count)) + 15
    assert done.search.seen(culprit) >= (3, 0)
    assert done.search.seen(culprit - 1)[1] >= 3


@given(
    st.integers(2, 60),
    st.lists(st.tuples(st.integers(-1, 59), st.booleans()), max_size=40),
    st.sets(st.integers(0, 59), max_size=20),
)
@settings(deadline=None, max_examples=100)
def test_beliefs_are_probabilities(count: int, seen: list[tuple[int, bool]], skip: set[int]) -> None:
    """Whatever was observed: they add up to one, skipped commits are not asked for, and a question is not useless."""
    search = Search(count)
    for index, failed in seen:
        search.observe(min(index, count - 1), failed=failed)
    for index in skip:
        search.skip(min(index, count - 1))
    found = search.finding()
    assert math.isclose(sum(search.posterior) + found.no_step, 1.0)
    assert 0 <= found.first <= found.last < count
    assert all(index in skip for index in range(found.first, found.last))
    first, last, chance = search.narrowest()
    assert math.isclose(sum(search.posterior[first : last + 1]), chance, abs_tol=1e-9)
    assert chance >= 0.9 - 1e-9 or (first, last) == (0, count - 1)
    asked = search.next_commit()
    assert asked is None or (GOOD_END <= asked < count and asked not in {min(index, count - 1) for index in skip})


@pytest.mark.parametrize(
    ("false_alarm", "escape", "confidence"),
    [(0.2, 0.2, 0.9), (0.2, 0.2, 0.99), (0.0, 0.3, 0.99)],
)
def test_it_is_right_as_often_as_it_says(false_alarm: float, escape: float, confidence: float) -> None:
    """32 commits, one defect, a flaky test: of 150 searches no more are wrong than the confidence allows.

    Within three standard errors of that many searches; the seed is fixed. It runs out of runs in none.
    """
    seed = random.Random(f"{false_alarm} {escape} {confidence}")
    wrong, searches = 0, 150
    for _ in range(searches):
        culprit = seed.randrange(32)
        done = searched(32, flaky(culprit, seed, false_alarm=false_alarm, escape=escape), confidence=confidence)
        assert done.decided or done.found.no_step > 0.5
        wrong += done.decided and done.found.first != culprit
    allowed = searches * (1 - confidence)
    assert wrong <= allowed + 3 * math.sqrt(allowed)


def test_a_flakier_test_is_asked_more_often() -> None:
    """Rates are learnt from what was seen, the ends included."""
    seed = random.Random(1)
    reliable = searched(32, lambda index: index >= 20)
    noisy = searched(32, flaky(20, seed, false_alarm=0.2, escape=0.2))
    assert noisy.runs > reliable.runs
    assert noisy.found.false_alarm > reliable.found.false_alarm
    assert noisy.search.needed(noisy.found.escape) >= noisy.search.needed(reliable.found.escape) >= 3


def test_it_asks_again_where_that_tells_more() -> None:
    """One pass amid many fails, where it decides everything, is doubted before it is believed."""
    search = Search(2)
    for _ in range(3):
        search.observe(GOOD_END, failed=False)
        search.observe(1, failed=True)
    search.observe(0, failed=False)
    assert search.finding().first == 1
    assert search.next_commit() == 0


@given(st.integers(8, 200), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_commits_that_do_not_build_are_gone_around(count: int, seed: random.Random) -> None:
    """A stretch of them somewhere: the culprit is found, or the stretch is named if it hides it."""
    first = seed.randrange(count - 2)
    stretch = range(first, min(count - 1, first + seed.randrange(1, count // 2)))
    culprit = seed.randrange(count)
    done = searched(count, lambda index: index >= culprit, skip=stretch)
    assert done.decided
    assert done.found.first <= culprit <= done.found.last
    hidden = culprit in stretch or culprit == stretch[-1] + 1
    expected = (stretch[0], stretch[-1] + 1) if hidden else (culprit, culprit)
    assert (done.found.first, done.found.last) == expected


def test_a_stretch_that_does_not_build_costs_few_runs() -> None:
    """Half of 256 commits do not build: it jumps out of them instead of trying one neighbour after the other."""
    done = searched(256, lambda index: index >= 200, skip=range(64, 192))
    assert done.found.first == done.found.last == 200
    assert sum(index in range(64, 192) for index in done.asked) <= 20


def test_only_skipped_commits_are_left() -> None:
    """Every commit between the ends is skipped: the answer is all of them, and nothing is asked in vain."""
    done = searched(6, lambda index: index >= 3, skip=range(5))
    assert (done.found.first, done.found.last) == (0, 5)
    assert done.search.next_commit() is None
    assert sorted(set(done.asked)) == list(range(-1, 6))


def test_ends_that_do_not_differ_are_told() -> None:
    """A test that fails half of the time everywhere: in most cases there is no step, and not often a culprit."""
    seed = random.Random(3)
    culprits = 0
    for _ in range(30):
        search = Search(16)
        for _ in range(2):  # by chance it looked well
            search.observe(GOOD_END, failed=False)
            search.observe(15, failed=True)
        for _ in range(100):
            if (index := search.next_commit()) is None:
                break
            search.observe(index, failed=seed.random() < 0.5)
        culprits += search.finding().sure >= 0.99
    assert culprits <= 6


def test_one_commit_is_not_guilty_by_itself() -> None:
    """The only candidate is named once the ends are known to differ, and not before."""
    search = Search(1)
    search.observe(GOOD_END, failed=False)
    search.observe(0, failed=True)
    assert search.finding().sure < 0.99
    assert search.next_commit() is not None


@pytest.mark.parametrize("arguments", [{"count": 0}, {"confidence": 1.0}, {"false_alarm": 0.0}, {"escape": 1.0}])
def test_impossible_arguments_are_refused(arguments: dict[str, float]) -> None:
    """ValueError."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        Search(**{"count": 3, **arguments})  # type: ignore[arg-type]
