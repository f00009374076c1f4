"""One deadline, made at the top and passed down; and ``until``, the only way this project waits.

Nothing here sleeps a fixed time in the hope that something has happened. Every deadline is stretched by how slow the
machine is: as measured while it runs (:class:`Pace`), and as its owner says (``XENTESTS_TIME_SCALE``); never by a
constant in a test. Time in which this machine stood still (a frozen virtual machine, a stopped process) counts for no
deadline: what was waited for stood still, too.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from xentests.errors import UsageError, XentestsError

T = TypeVar("T")


class Pace:
    """How slow this machine is just now: 1.0 as it should be, 3.0 where the same work takes three times as long.

    Learnt from work that is done over and over, whose usual time is known. The last few count, by their median: a
    machine that shares its cores with others is fast now and slow then, and one that took long may have had a reason
    of its own. Never below 1.0, so that a fast machine does not make a slow Xen fail; never above ``most``, so that
    what hangs is told in the end.
    """

    def __init__(self, *, most: float = 4.0) -> None:
        self._most = most
        self._seen: deque[float] = deque(maxlen=5)

    def note(self, took_s: float, *, usual_s: float) -> None:
        """Some work took so long, and usually takes so long."""
        self._seen.append(took_s / usual_s)

    def forget(self) -> None:
        """As if nothing had been measured."""
        self._seen.clear()

    @property
    def factor(self) -> float:
        """1.0 until something was measured."""
        return min(self._most, max(1.0, statistics.median(tuple(self._seen)))) if self._seen else 1.0


PACE = Pace()
"""That of this process. Whoever does what is always the same work says how long it took."""


def time_scale() -> float:
    """The factor by which deadlines are stretched: the machine's pace, and ``XENTESTS_TIME_SCALE`` (1.0 when unset)."""
    return PACE.factor * _asked_for()


def _asked_for() -> float:
    text = os.environ.get("XENTESTS_TIME_SCALE", "1")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 100:
        raise UsageError(f"XENTESTS_TIME_SCALE={text!r}: give a number between 0.1 and 100")
    return value


class RunningClock:
    """Seconds in which this process could run: like ``now``, but a gap between two ticks counts ``longest_s`` at most.

    Somebody has to ``tick`` it more often than that.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, *, longest_s: float = 1.0) -> None:
        self._now = now
        self._longest_s = longest_s
        self._lock = threading.Lock()
        self._last = now()
        self._lost = 0.0

    def tick(self) -> float:
        """Look at the time, and return the running time, in seconds since some moment in the past."""
        with self._lock:
            now = self._now()
            self._lost += max(0.0, now - self._last - self._longest_s)
            self._last = now
            return now - self._lost


_clock: RunningClock | None = None


def running_s() -> float:
    """The running time of this process; what deadlines are counted in."""
    global _clock  # noqa: PLW0603 - one clock a process, started with its first deadline
    if _clock is None:
        clock = _clock = RunningClock()

        def ticking() -> None:
            while True:
                clock.tick()
                time.sleep(0.25)

        threading.Thread(target=ticking, name="running clock", daemon=True).start()
    return _clock.tick()


class Deadline:
    """A moment after which waiting is pointless; ``limit_s`` is the scaled length, in seconds."""

    def __init__(self, limit_s: float, *, scaled: bool = True) -> None:
        self.limit_s = limit_s * time_scale() if scaled else limit_s
        self._slow = PACE.factor if scaled else 1.0
        self._start = running_s()

    @property
    def elapsed_s(self) -> float:
        """Running seconds since the deadline was set."""
        return running_s() - self._start

    @property
    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.limit_s - self.elapsed_s)

    @property
    def passed(self) -> bool:
        """True once no time is left."""
        return self.left_s == 0.0

    def __str__(self) -> str:
        slow = f", on a machine {self._slow:.1f} times slower than usual" if self._slow > 1 else ""
        return f"{self.elapsed_s:.1f} s of {self.limit_s:.1f} s{slow}"


def until(
    probe: Callable[[], T],
    *,
    what: str,
    deadline: Deadline | float,
    error: Callable[[str], XentestsError],
    advice: str = "",
    every_s: float = 0.02,
    slowest_s: float = 0.5,
) -> T:
    """Call ``probe`` until it returns something true, and return that.

    The pause between tries grows from ``every_s`` to ``slowest_s``. When the deadline passes, raises what ``error``
    makes of a text that says what was waited for, how long, how many tries, what was seen last, and ``advice``.
    Exceptions of ``probe`` are not caught: a crash must end the wait.
    """
    if not isinstance(deadline, Deadline):
        deadline = Deadline(deadline)
    tries = 0
    pause = every_s
    while True:
        seen = probe()
        tries += 1
        if seen:
            return seen
        if deadline.passed:
            message = f"{what}: not within {deadline} ({tries} tries); last seen: {seen!r}"
            raise error(f"{message}. {advice}" if advice else message)
        time.sleep(min(pause, deadline.left_s + 0.001))
        pause = min(pause * 1.5, slowest_s)
