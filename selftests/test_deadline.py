"""Deadlines and the one way to wait: what an error says, how time is counted, what stands still with the machine."""

from __future__ import annotations

import pytest

from xentests.deadline import PACE, Deadline, Pace, RunningClock, running_s, until
from xentests.errors import LabError, UsageError


def test_a_gap_counts_little() -> None:
    """A machine that stood still for a minute has used up a second of its deadlines; ordinary time counts in full."""
    now = [100.0]
    clock = RunningClock(lambda: now[0])
    start = clock.tick()
    for _ in range(8):
        now[0] += 0.25
        clock.tick()
    assert clock.tick() - start == 2.0
    now[0] += 60.0
    assert clock.tick() - start == 3.0
    now[0] += 0.5
    assert clock.tick() - start == 3.5


def test_the_clock_runs() -> None:
    """Waiting half a second takes half a second of it, though nobody looks at it meanwhile."""
    start = running_s()
    deadline = Deadline(0.5, scaled=False)
    until(lambda: deadline.passed, what="time", deadline=5.0, error=LabError)
    assert 0.5 <= running_s() - start < 3


def test_what_a_wait_says_when_it_ends_late() -> None:
    """What was waited for, how long out of what, how often it was tried, what was seen last, and the advice."""
    seen: list[int] = []

    def probe() -> list[int]:
        seen.append(1)
        return []

    with pytest.raises(LabError) as caught:
        until(probe, what="a miracle", deadline=0.1, error=LabError, advice="Pray")
    assert str(caught.value).startswith("a miracle: not within 0.1 s of 0.1 s (")
    assert str(caught.value).endswith(f"{len(seen)} tries); last seen: []. Pray")


def test_exceptions_of_the_probe_pass() -> None:
    """A crash ends a wait at once."""
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 / 0, what="x", deadline=60.0, error=LabError)


def test_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """XENTESTS_TIME_SCALE stretches every deadline; nonsense is the caller's error."""
    monkeypatch.setenv("XENTESTS_TIME_SCALE", "3")
    assert Deadline(2.0).limit_s == 6.0
    assert Deadline(2.0, scaled=False).limit_s == 2.0
    for text in ("fast", "0", "1000"):
        monkeypatch.setenv("XENTESTS_TIME_SCALE", text)
        with pytest.raises(UsageError, match=r"between 0\.1 and 100"):
            Deadline(1.0)


@pytest.mark.parametrize(
    ("took", "factor"),
    [
        ([], 1.0),
        ([0.2], 1.0),  # a fast machine keeps its limits
        ([1.5], 3.0),
        ([0.5, 0.5, 40.0], 1.0),  # one that took long for a reason of its own
        ([0.5] * 9 + [1.0] * 3, 2.0),  # it became slow
        ([1.0] * 9 + [0.5] * 3, 1.0),  # and fast again
        ([60.0] * 3, 4.0),
    ],
)
def test_the_pace(took: list[float], factor: float) -> None:
    """As slow as the last few pieces of work were, of what is usual, within limits."""
    pace = Pace()
    for seconds in took:
        pace.note(seconds, usual_s=0.5)
    assert pace.factor == factor
    pace.forget()
    assert pace.factor == 1.0


def test_the_pace_stretches_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTESTS_TIME_SCALE", "2")
    PACE.note(3.0, usual_s=1.0)
    deadline = Deadline(2.0)
    assert deadline.limit_s == 12.0
    assert str(deadline).endswith(" s of 12.0 s, on a machine 3.0 times slower than usual")
    assert Deadline(2.0, scaled=False).limit_s == 2.0
