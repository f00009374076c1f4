"""A deterministic machine repeats itself: five clones measure the same, whatever the outer host is doing meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xentests.errors import UsageError
from xentests.host import measure
from xentests.lab.machine import Machine
from xentests.release.arch import Arch
from xentests.session import Options, Session

MEASUREMENT = """\
cat /proc/uptime
sed -n 3p /proc/timer_list
number=0
while [ $number -lt 20000 ]; do number=$((number + 1)); done
sed -n 3p /proc/timer_list
cat /proc/uptime
xl list
xl vcpu-list
"""


@pytest.fixture
def busy_outer_host() -> Iterator[list[subprocess.Popen[bytes]]]:
    """More busy processes than this machine has CPUs, started by the test; they end with it."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_five_clones_measure_the_same(arch: Arch, runs: Path, busy_outer_host: list[subprocess.Popen[bytes]]) -> None:
    """Uptime in ns before and after 20000 rounds of a loop, and all CPU times that Xen knows: equal to the digit."""
    with Session(Options(run_dir=runs / f"det-{arch}", arch=arch)) as session:
        base = session.template(Machine(arch, timing="deterministic"))
        armed = session.derive(base, key="selftest-2", prepare=lambda host: measure.arm(host, MEASUREMENT))
        figures = []
        for number in range(5):
            if number == 3:
                busy = [sys.executable, "-c", "while True: pass"]
                busy_outer_host.extend(subprocess.Popen(busy) for _ in range(4))
            name = f"{arch}-{number}"
            host = session.clone(armed, name=name, log_dir=runs / name, standby=False)
            figures.append(measure.result(host))
            session.end(host)
    assert "Domain-0" in figures[0]
    assert figures[0].count("nsecs") == 2
    assert figures[1:] == [figures[0]] * 4


def test_a_machine_that_is_not_deterministic_cannot_be_armed(session: Session, runs: Path) -> None:
    """Its figures would not repeat: the caller is told which machine to ask for."""
    host = session.clone(session.template(), name="fast", log_dir=runs / "fast", standby=False)
    with pytest.raises(UsageError, match="timing"):
        measure.arm(host, "true")
