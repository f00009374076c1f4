"""The null scheduler: a vCPU to each pCPU, and those that are left over wait.

docs/misc/xen-command-line.pandoc, sched; the comment at the head of xen/common/sched/null.c.
"""

from __future__ import annotations

import pytest

from fixtures.pcpus import CPUS, MakePcpus
from fixtures.releases import Figure

pytestmark = [pytest.mark.needs("null"), pytest.mark.xdist_group("pcpus")]
_NULL = ("sched=null",)
_THREE = ("g0", "g1", "g2")


def test_one_to_one(pcpus: MakePcpus, figure: Figure) -> None:
    """Three guests and dom0 on four pCPUs have one each, and stay there."""
    host = pcpus(*_THREE, xen_args=_NULL)
    host.spin(*_THREE)
    everybody = ("Domain-0", *_THREE)
    before = {each.name: each.cpu for each in host.vcpus()}
    figure("pCPUs in use", len(host.wait_apart(everybody)))
    assert {each.name: each.cpu for each in host.vcpus()} == before
    for name in _THREE:
        host.works(name)


def test_fifth_waits_for_a_place(pcpus: MakePcpus) -> None:
    """A guest for which there is no pCPU does not run; it does as soon as another is gone, on that one's pCPU."""
    host = pcpus(*_THREE, "g3", xen_args=_NULL)
    host.spin("g3")
    place = host.vcpu("g0").cpu
    assert host.vcpu("g3").time_s == 0
    assert host.vcpu("g3").cpu != place
    host.host.succeed("xl", "destroy", "g0", timeout_s=60)
    host.works("g3")
    assert host.vcpu("g3").cpu == place


def test_a_place_follows_affinity(pcpus: MakePcpus) -> None:
    """A waiting guest gets a pCPU only when one that its affinity lets it use is free."""
    host = pcpus("g0", "g1", xen_args=_NULL)
    host.spin("g0", "g1")
    host.works("g0")
    taken = {each.cpu for each in host.vcpus()}
    free = min(set(range(CPUS)) - taken)
    host.pin("g0", str(free))
    host.wait_on("g0", {free})
    host.stays_on("g0", {free})


@pytest.mark.needs("cpu-hotplug")
def test_a_place_goes_offline_and_comes_back(pcpus: MakePcpus) -> None:
    """A guest whose pCPU goes offline, with no other free, waits; it has that pCPU again once it is back online."""
    host = pcpus(*_THREE, xen_args=_NULL)
    host.spin(*_THREE)
    host.wait_apart(("Domain-0", *_THREE))
    name, place = next((each.name, each.cpu) for each in host.vcpus() if each.name in _THREE and each.cpu)
    host.host.succeed("xen-hptool", "cpu-offline", place)
    assert host.host.xl.info().nr_cpus == CPUS - 1
    waits = host.vcpu(name)
    for other in _THREE:
        if other != name:
            host.works(other)
    now = host.vcpu(name)
    assert (now.time_s, "r" in now.state) == (waits.time_s, False)
    host.host.succeed("xen-hptool", "cpu-online", place)
    host.works(name, since=waits)
    assert host.vcpu(name).cpu == place
