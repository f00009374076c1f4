"""The watchdog of giants, on processes that are no machines: one that grows, one that does not, one that ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xentests.deadline import until
from xentests.errors import LabError
from xentests.lab.watchdog import Watchdog

MIB = 80
_GROWING = (
    f"import sys; sys.stdin.readline(); held = bytearray({MIB} << 20); print('grown', flush=True); sys.stdin.read()"
)


@contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """It grows by ``MIB`` when it reads a line, says so, and ends with its input."""
    with subprocess.Popen(
        [sys.executable, "-c", _GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        yield process
        process.kill()


def _grow(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"\n")
    process.stdout.readline()


def test_process_within_its_budget_is_left_alone() -> None:
    """Its peak is known, and the kernel is told to take it first."""
    with _process() as process:
        watchdog = Watchdog("giant", process.pid, budget_mib=4096, available_mib=lambda: 1 << 20)
        _grow(process)
        assert watchdog.look() >= MIB
        assert watchdog.verdict == ""
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "900\n"
        watchdog.stop()
        assert process.poll() is None


def test_process_beyond_its_budget_is_ended_with_figures() -> None:
    """What it had and what it was to have stand in the verdict."""
    with _process() as process:
        watchdog = Watchdog("giant", process.pid, budget_mib=MIB // 2, available_mib=lambda: 12345)
        _grow(process)
        until(lambda: process.poll() is not None, what="its end", deadline=10.0, error=LabError)
        assert watchdog.verdict.startswith("giant: ended by the lab")
        assert f"of the {MIB // 2} MiB reserved" in watchdog.verdict
        assert "12345 MiB were left" in watchdog.verdict
        assert "touches more memory than its test expects" in watchdog.verdict


def test_machine_without_memory_left_loses_its_giant() -> None:
    """Before the kernel chooses somebody itself, and whoever took the memory."""
    with _process() as process:
        watchdog = Watchdog("giant", process.pid, budget_mib=4096, available_mib=lambda: 100)
        until(lambda: process.poll() is not None, what="its end", deadline=10.0, error=LabError)
        assert "Something else took the memory" in watchdog.verdict


def test_process_that_ends_keeps_its_peak() -> None:
    """And nobody is said to have ended it."""
    with _process() as process:
        watchdog = Watchdog("giant", process.pid, budget_mib=4096, available_mib=lambda: 1 << 20)
        _grow(process)
        peak = watchdog.look()
        process.kill()
        process.wait()
        assert watchdog.look() == peak >= MIB
        assert watchdog.verdict == ""
