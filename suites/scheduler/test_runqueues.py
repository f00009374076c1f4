"""Credit2's runqueues: how pCPUs are put together, and that load is balanced across them."""

from __future__ import annotations

import re

import pytest

from fixtures.pcpus import CPUS, MakePcpus
from fixtures.releases import Figure
from xentests.host.host import Host

pytestmark = [pytest.mark.needs("credit2"), pytest.mark.xdist_group("pcpus")]

ARRANGEMENTS = {"cpu": 4, "core": 4, "socket": 2, "node": 1, "all": 1}
"""Runqueues on two sockets of two cores, in one node."""
ON_ARM = {**ARRANGEMENTS, "core": 1, "socket": 1}
"""Xen on Arm tells no cores and sockets apart: 4.14 had one runqueue of all CPUs with either."""
_RUNQUEUE = re.compile(r"Runqueue \d+:\n.*?ncpus += (\d+)\n.*?cpus += ([\d,-]+)", re.DOTALL)


def runqueues(host: Host) -> dict[str, int]:
    """pCPUs of each runqueue, as Xen writes them, and how many they are (debug key r)."""
    return {cpus: int(number) for number, cpus in _RUNQUEUE.findall(host.xl.debug_keys("r"))}


def credit2(*more: str) -> tuple[str, ...]:
    """Xen's command line."""
    return ("sched=credit2", *more)


@pytest.mark.parametrize("arrangement", list(ARRANGEMENTS))
def test_arrangement(pcpus: MakePcpus, arrangement: str, figure: Figure) -> None:
    """Runqueues are those of ``credit2_runqueue``, on two sockets of two cores; each pCPU is in one.

    docs/misc/xen-command-line.pandoc, credit2_runqueue.
    """
    host = pcpus(xen_args=credit2(f"credit2_runqueue={arrangement}"), sockets=2).host
    found = runqueues(host)
    figure("runqueues", len(found))
    assert len(found) == (ON_ARM if host.arch == "arm64" else ARRANGEMENTS)[arrangement], found
    assert sum(found.values()) == CPUS


def test_at_most_so_many_cpus(pcpus: MakePcpus, figure: Figure) -> None:
    """``sched_credit2_max_cpus_runqueue=2`` cuts one runqueue for all into two of two.

    docs/misc/xen-command-line.pandoc, sched_credit2_max_cpus_runqueue.
    """
    words = credit2("credit2_runqueue=all", "sched_credit2_max_cpus_runqueue=2")
    found = runqueues(pcpus(xen_args=words, sockets=2).host)
    figure("runqueues", len(found))
    assert sorted(found.values()) == [2, 2], found


@pytest.mark.parametrize("arrangement", ["cpu", "socket", "all"])
def test_load_is_balanced(pcpus: MakePcpus, arrangement: str, figure: Figure) -> None:
    """Three guests that never sleep, all begun on pCPU 1, end on pCPUs of their own, whatever the runqueues."""
    names = ("g0", "g1", "g2")
    host = pcpus(*names, xen_args=credit2(f"credit2_runqueue={arrangement}"), sockets=2)
    for name in names:
        host.pin(name, "1")
    host.spin(*names)
    for name in names:
        host.wait_on(name, {1})
        host.pin(name, "all")
    found = host.wait_apart(names)
    figure("pCPUs in use", len(found))


def test_parameters(pcpus: MakePcpus) -> None:
    """Parameters of the command line are those that credit2 says it works with.

    docs/misc/xen-command-line.pandoc: credit2_cap_period_ms, credit2_load_window_shift, sched_ratelimit_us.
    """
    words = credit2("credit2_cap_period_ms=50", "credit2_load_window_shift=25", "sched_ratelimit_us=2500")
    host = pcpus(xen_args=words, sockets=2).host
    assert "ratelimit=2500us" in host.succeed("xl", "sched-credit2").text
    said = host.xl.dmesg()
    assert re.search(r"cap enforcement granularity: 50ms", said)
    assert re.search(r"load_window_shift: 25", said) or "runqueues arrangement" in said
