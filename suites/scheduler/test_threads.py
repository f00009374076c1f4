"""Hyper-threads: credit2 puts them together by core, and core scheduling gives a core to one guest at a time.

QEMU's emulation shows threads to Xen on CPU models of Intel's only, without VMX, so that guests here are PV. dom0's
Linux would map 256 MiB of PCI configuration space a page at a time on such a machine (``pci=nommconf``).
"""

from __future__ import annotations

import re

import pytest

from fixtures.pcpus import MakePcpus, Pcpus, vcpu_list
from fixtures.releases import Figure
from suites.scheduler.test_runqueues import runqueues

pytestmark = [pytest.mark.needs("amd64", "pv", "credit2"), pytest.mark.xdist_group("pcpus")]

# What Xen does about Meltdown and its like on a CPU of Intel's takes minutes of a boot under emulation.
_INTEL = ("smt=1", "spec-ctrl=no", "xpti=0", "pv-l1tf=0")
_GUESTS = ("g0", "g1")
_UPTIME = "cut -d' ' -f1 /proc/uptime"
_TWO_LOOKS = f"{_UPTIME}; echo @; xl vcpu-list; echo @; sleep 5; xl vcpu-list; echo @; {_UPTIME}"


def threads(pcpus: MakePcpus, *names: str, xen_args: tuple[str, ...]) -> Pcpus:
    """Two cores of two threads."""
    return pcpus(
        *names,
        xen_args=("sched=credit2", *_INTEL, *xen_args),
        dom0_args=("pci=nommconf",),
        cpu_model="qemu64,vendor=GenuineIntel",
        threads=2,
    )


@pytest.mark.parametrize(
    ("arrangement", "number"), [("cpu", 4), ("core", 2), ("socket", 1)], ids=["cpu", "core", "socket"]
)
def test_arrangement(pcpus: MakePcpus, arrangement: str, number: int, figure: Figure) -> None:
    """Two cores of two threads are four runqueues by CPU, two by core, and one by socket.

    docs/misc/xen-command-line.pandoc, credit2_runqueue: "core: one runqueue per physical core of the host".
    """
    host = threads(pcpus, xen_args=(f"credit2_runqueue={arrangement}",))
    found = runqueues(host.host)
    figure("runqueues", len(found))
    assert re.search(r"^threads_per_core +: 2$", host.host.succeed("xl", "info").text, re.MULTILINE)
    assert len(found) == number, found
    assert set(found.values()) == {4 // number}


def test_core_scheduling(pcpus: MakePcpus, figure: Figure) -> None:
    """With ``sched-gran=core`` two threads of a core never work for two guests: on one core guests take turns.

    Together they then have as much CPU time as passes; with a thread each it would be twice as much. Where they are
    seen does not tell: ``xl vcpu-list`` asks for one guest after the other, and they change places in between.

    docs/misc/xen-command-line.pandoc, sched-gran: "only vcpus of the same domain ... on all siblings of a core".
    """
    host = threads(pcpus, *_GUESTS, xen_args=("sched-gran=core",))
    assert "Scheduling granularity: core, 2 CPUs per sched-resource" in host.host.xl.dmesg()
    host.pin("Domain-0", "0-1")
    for guest in _GUESTS:
        host.pin(guest, "2-3")
    host.spin(*_GUESTS)
    for guest in _GUESTS:
        host.works(guest)
    said = host.host.succeed("sh", "-c", _TWO_LOOKS, timeout_s=60).text
    began, first, second, ended = said.split("@\n")
    worked = sum(each.time_s for each in vcpu_list(second) if each.name in _GUESTS)
    worked -= sum(each.time_s for each in vcpu_list(first) if each.name in _GUESTS)
    share = worked / (float(ended) - float(began))
    figure("CPU time of two guests on one core, of what passed", round(share, 2))
    assert 0.5 < share < 1.2, said


def test_a_core_is_taken_as_a_whole(pcpus: MakePcpus) -> None:
    """With ``sched-gran=core`` a single thread cannot be taken from a pool: cores move between pools as a whole.

    docs/misc/xen-command-line.pandoc, sched-gran; xen/common/sched/cpupool.c.
    """
    host = threads(pcpus, xen_args=("sched-gran=core",)).host
    host.succeed("xl", "cpupool-cpu-remove", "Pool-0", 3)
    text = host.succeed("xl", "cpupool-list", "-c").text
    assert re.search(r"^Pool-0 +0,1$", text, re.MULTILINE), text
