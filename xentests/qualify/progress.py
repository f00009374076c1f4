"""What a qualification shows while it runs: what runs, what is left, failures as they come, and the time that is left.

A table that renews itself where there is a terminal, lines otherwise. Reads records; decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xentests.qualify.plan import Progress, Qualification
from xentests.qualify.profile import Job
from xentests.qualify.runner import State
from xentests.report.verdict import Verdict

_EVERY_S = 1.0
_SHOWN_FAILURES = 8
_BAD = (Verdict.FAILED, Verdict.BROKEN)


@dataclass(frozen=True)
class Expected:
    """What history knows: how long each test took (by architecture), and each job from beginning to end."""

    tests: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    jobs: Mapping[str, float] = field(default_factory=dict)

    def left_s(self, state: State, progress: Progress) -> float | None:
        """Seconds that a job still needs; None when nothing tells."""
        if state.ended:
            return 0.0
        known = self.tests.get(state.job.arch, {})
        left = [known[nodeid] for nodeid in progress.missing if nodeid in known]
        if progress.missing and len(left) >= len(progress.missing) / 2:
            # Tests not seen before take what the others do; workers share them.
            return sum(left) * len(progress.missing) / len(left) / state.job.part.workers
        whole = self.jobs.get(state.job.name)
        if whole is None:
            return None
        ran = time.monotonic() - state.began if state.running else 0.0
        return max(0.0, whole - ran)


class Display:
    """Shows the states of all jobs on ``console``; call it as often as you like."""

    def __init__(self, qualification: Qualification, console: Console, expected: Expected) -> None:
        self._qualification = qualification
        self._console = console
        self._expected = expected
        self._said: set[tuple[str, str]] = set()
        self._phase: dict[str, str] = {}
        self._shown = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, states: list[State]) -> None:
        """What ``runner.run`` tells."""
        now = time.monotonic()
        changed = any(self._phase.get(state.job.name) != _phase(state) for state in states)
        if now - self._shown < _EVERY_S and not changed:
            return
        self._shown = now
        progress = {state.job.name: self._qualification.progress(state.job) for state in states}
        for state in states:
            self._tell(state, progress[state.job.name])
        if self._live is not None:
            self._live.update(self._table(states, progress), refresh=True)

    def _tell(self, state: State, progress: Progress) -> None:
        """One line for each failure, and where there is no table for the beginning and end of each job."""
        name = state.job.name
        for record in progress.records.values():
            if record.verdict in _BAD and (name, record.nodeid) not in self._said:
                self._said.add((name, record.nodeid))
                first = (record.message.splitlines() or [""])[0][:300]
                said = f"{record.verdict}: {state.job.arch} {record.nodeid}: {first}"
                self._console.print(said, markup=False, soft_wrap=True)
        phase = _phase(state)
        if self._phase.get(name) != phase and phase != "waits":
            self._phase[name] = phase
            if self._live is None or state.problem:
                self._console.print(f"{name}: {phase}{_counts(progress) if phase != 'runs' else ''}", markup=False)
        self._phase[name] = phase

    def _table(self, states: list[State], progress: Mapping[str, Progress]) -> Group:
        lefts = [self._expected.left_s(state, progress[state.job.name]) for state in states]
        known = [left for left in lefts if left is not None]
        total = f"{clock(sum(known))}{' or more' if len(known) < len(lefts) else ''}" if known else "not known yet"
        plan = self._qualification.plan
        table = Table()
        for name in ("job", "", "done", "bad", "took", "left"):
            table.add_column(name, no_wrap=True)
        for state, left in zip(states, lefts, strict=True):
            of = progress[state.job.name]
            took = state.seconds + (time.monotonic() - state.began if state.running else 0.0)
            bad = sum(record.verdict in _BAD for record in of.records.values())
            table.add_row(
                escape(state.job.name),
                escape(_phase(state).splitlines()[0][:60]),
                f"{len(of.records)}/{len(of.selected) or '?'}",
                f"[red]{bad}[/]" if bad else "0",
                clock(took) if took else "",
                "" if state.ended else clock(left) if left is not None else "?",
            )
        return Group(Text(f"{plan.release}, profile {plan.profile}: {total} left", no_wrap=True), table)


def _phase(state: State) -> str:
    if state.problem:
        return f"problem: {state.problem}"
    if state.running:
        return "runs"
    return "done" if state.ended else "waits"


def _counts(progress: Progress) -> str:
    verdicts = [record.verdict for record in progress.records.values()]
    each = (f"{count} {verdict}" for verdict in Verdict if (count := verdicts.count(verdict)))
    return f": {', '.join(each) or 'no tests'}"


def expected_of(qualification: Qualification, durations: Mapping[str, Mapping[str, float]]) -> Expected:
    """What ``durations`` (of tests, by architecture) tell of the qualification's jobs, all tests of a suite taken."""
    return Expected(durations, {job.name: _whole(job, durations.get(job.arch, {})) for job in qualification.jobs})


def _whole(job: Job, known: Mapping[str, float]) -> float:
    prefix = f"suites/{job.part.suite}/"
    return sum(seconds for nodeid, seconds in known.items() if nodeid.startswith(prefix)) / job.part.workers


def clock(seconds: float) -> str:
    """``1:23:45`` or ``3:45``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
