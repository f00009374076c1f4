"""Runs the jobs of a qualification, as many at once as cores and memory allow, and says what happens as it happens.

Each job is a pytest of its own, in a session of its own, that is ended when this process is, however that dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from xentests.errors import LabError
from xentests.pytest_process import PytestProcess, said
from xentests.qualify.plan import ATTEMPTS, Qualification
from xentests.qualify.profile import Job

_SPARE_GIB = 1.0


@dataclass
class State:
    """One job while the qualification runs. ``problem`` is why it ended without having run its tests."""

    job: Job
    process: PytestProcess | None = None
    began: float = 0.0
    seconds: float = 0.0
    tries: int = 0
    ended: bool = False
    problem: str = ""
    log: Path = field(default_factory=Path)

    @property
    def running(self) -> bool:
        """Whether its pytest is at work."""
        return self.process is not None


Watch = Callable[[list[State]], None]


def run(qualification: Qualification, lock: int, *, watch: Watch, root: Path) -> list[State]:
    """Run what is not done yet, calling ``watch`` several times a second; tests are those of the checkout ``root``.

    Ends by KeyboardInterrupt, with no pytest of its own left, when it is interrupted.
    """
    states = [State(job) for job in qualification.jobs]
    room = psutil.virtual_memory().available / (1 << 30) - _SPARE_GIB
    for state in states:
        progress = qualification.progress(state.job)
        state.ended = progress.ended
        if progress.ended and progress.uncollected:
            state.problem = _uncollected(progress.uncollected)
    try:
        while not all(state.ended for state in states):
            for state in states:
                if state.running:
                    _look_at(qualification, state)
            _start_what_fits(qualification, states, room, lock, root)
            watch(states)
            _nap(states)
    finally:
        _end_all(states)
        watch(states)
    return states


def _nap(states: list[State]) -> None:
    """Wait for a job to end, at most half a second."""
    running = [state.process for state in states if state.process is not None]
    if running:
        running[0].wait(0.5)


def _start_what_fits(qualification: Qualification, states: list[State], room: float, lock: int, root: Path) -> None:
    """``room``: GiB that were free before any of them ran. A job that is alone is started whatever it needs."""
    for state in states:
        if state.ended or state.running:
            continue
        busy = [other.job.part for other in states if other.running]
        cores = sum(part.workers for part in busy) + state.job.part.workers
        memory = sum(part.memory_gib for part in busy) + state.job.part.memory_gib
        if busy and (cores > (os.cpu_count() or 1) or memory > room):
            return
        _start(qualification, state, lock, root)


def _start(qualification: Qualification, state: State, lock: int, root: Path) -> None:
    job = state.job
    folder = qualification.folder(job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in qualification.runs(job):
            earlier.wait_until_left()
        done = qualification.done_file(job)
        argv = [*job.argv(folder), *(["--xen-done", str(done)] if done else [])]
        argv += ["--xen-mirror", qualification.plan.mirror] if qualification.plan.mirror else []
        state.tries += 1
        state.log = folder / f"pytest-{qualification.progress(job).attempts + 1}.log"
        state.process = PytestProcess(argv, cwd=root, log=state.log, keep_open=(lock,))
    except OSError as error:
        raise LabError(f"job {job.name}: cannot make {folder}: {error.strerror}") from error
    state.began = time.monotonic()


def _look_at(qualification: Qualification, state: State) -> None:
    assert state.process is not None
    took = time.monotonic() - state.began
    limit = state.job.part.limit_s
    if state.process.poll() is None and took > limit:
        state.problem = f"ended after its limit of {limit:.0f} s (limit_s of the profile)"
        state.process.end()
    code = state.process.poll()
    if code is None:
        return
    state.process = None
    state.seconds += took
    progress = qualification.progress(state.job)
    state.ended = progress.ended
    if state.ended and not progress.selected:
        state.problem = f"no test was selected by {' '.join(state.job.argv(Path('DIR')))}"
    if progress.uncollected:
        state.problem = _uncollected(progress.uncollected)
    if not state.ended and not state.problem and state.tries >= ATTEMPTS:
        state.problem = f"its pytest ended with {said(code)}, {state.tries} times; see {state.log}"
    if not state.ended and not state.problem and code in (3, 4):
        state.problem = f"its pytest ended with {said(code)}; see {state.log}"
    state.ended = state.ended or bool(state.problem)


def _uncollected(files: Sequence[str]) -> str:
    also = f", and {len(files) - 1} more" if len(files) > 1 else ""
    return f"tests could not be collected: {files[0]}{also}"


def _end_all(states: list[State]) -> None:
    running = [state.process for state in states if state.process is not None]
    for process in running:
        process.interrupt()
    for process in running:
        process.end()
    for state in states:
        state.process = None
