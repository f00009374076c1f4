"""Whatever ends a run, and when: no QEMU of it survives, and the next run is not affected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from xentests.deadline import until
from xentests.errors import LabError

ROOT = Path(__file__).parents[2]


class Run:
    """A pytest of its own on ``held.py``, with a temporary directory of its own by which its QEMUs are known."""

    def __init__(self, tmp: Path, test: str) -> None:
        self.tmp = tmp
        argv = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", f"selftests/vm/held.py::{test}"]
        argv += ["--xen-artifacts", str(tmp / "artifacts")]
        self.log = tmp / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp)}, stdout=log, stderr=log, start_new_session=True
            )

    def qemus(self) -> list[int]:
        """Process ids of its QEMUs."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words and "qemu-system" in words[0] and any(str(self.tmp) in word for word in words):
                found.append(process.pid)
        return found

    def wait_for(self, text: str) -> None:
        """Wait until it prints ``text``."""
        until(
            lambda: text in self.log.read_text() or self.process.poll() is not None,
            what=text,
            deadline=90,
            error=lambda message: LabError(f"{message}\n{self.log.read_text()}"),
        )
        assert text in self.log.read_text(), self.log.read_text()

    def assert_nothing_left(self) -> None:
        """No QEMU, keeper, socket or overlay of it, a few seconds after its end at the latest."""
        until(lambda: not self.qemus(), what="end of its QEMUs", deadline=10, error=LabError)
        until(
            lambda: not list(self.tmp.glob("xentests-*/xt*")),
            what="end of its directories",
            deadline=10,
            error=LabError,
        )


Start = Callable[[str], Run]


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A temporary directory with a short path: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def start(tmp: Path) -> Iterator[Start]:
    """Starts runs, and ends what a failed test left of them."""
    runs: list[Run] = []

    def make(test: str) -> Run:
        runs.append(Run(tmp, test))
        return runs[-1]

    yield make
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def passes(run: Run) -> None:
    """Wait for a run's end; it must have passed."""
    assert run.process.wait(120) == 0, run.log.read_text()
    run.assert_nothing_left()


@pytest.mark.parametrize("after_s", [0.3, 0.7, 1.1, 1.5, 2.0, 2.6])
def test_kill_9_at_any_moment(start: Start, after_s: float) -> None:
    """Killed while it imports, opens libvirt, clones, runs a test: nothing is left and the next run passes."""
    run = start("test_holds")
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(after_s)
    run.process.kill()
    run.process.wait()
    run.assert_nothing_left()


def test_kill_9_while_a_template_is_made(start: Start) -> None:
    """Killed while a Xen boots for a template: no half-made template stays, the next run passes."""
    run = start("test_boots")
    until(lambda: bool(run.qemus()), what="a booting QEMU", deadline=60, error=LabError)
    run.process.kill()
    run.process.wait()
    run.assert_nothing_left()
    passes(start("test_answers"))


def test_ctrl_c_once_ends_in_order(start: Start) -> None:
    """The interrupted test's evidence is kept, machines end, and pytest says that it was interrupted (exit code 2)."""
    run = start("test_holds")
    run.wait_for("holding")
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == pytest.ExitCode.INTERRUPTED, run.log.read_text()
    run.assert_nothing_left()


def test_ctrl_c_twice_ends_at_once(start: Start) -> None:
    """The second Ctrl-C breaks off the tear-down; the keeper sees to the rest."""
    run = start("test_holds")
    run.wait_for("holding")
    run.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(0.2)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) != 0
    run.assert_nothing_left()


def test_two_runs_at_once(start: Start) -> None:
    """Two runs share the store and nothing else: both pass."""
    first, second = start("test_answers"), start("test_answers")
    assert first.process.wait(120) == 0, first.log.read_text()
    assert second.process.wait(120) == 0, second.log.read_text()
    first.assert_nothing_left()
