"""Where vCPUs run: hard and soft affinity, dom0's pinning, and pCPUs that go offline and come back."""

from __future__ import annotations

import pytest

from fixtures.pcpus import CPUS, MakePcpus
from fixtures.releases import Figure

pytestmark = pytest.mark.xdist_group("pcpus")

# Rtds does not bear the clocks of emulated CPUs that run at the same time (docs/decisions/08-two-timings.md).
SCHEDULERS = [pytest.param(name, id=name, marks=pytest.mark.needs(name)) for name in ("credit", "credit2")]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_hard_affinity(pcpus: MakePcpus, scheduler: str) -> None:
    """A vCPU runs where its hard affinity lets it and nowhere else, beside others, and moves when that is changed.

    docs/man/xl.1, vcpu-pin: "Set hard and soft affinity for a VCPU".
    """
    host = pcpus("g0", "g1", xen_args=(f"sched={scheduler}",))
    for name in ("g0", "g1"):
        host.pin(name, "1")
    host.spin("g0", "g1")
    host.stays_on("g0", {1})
    host.stays_on("g1", {1})
    host.pin("g0", "2-3")
    host.wait_on("g0", {2, 3})
    host.stays_on("g0", {2, 3})
    assert host.vcpu("g0").hard == "2-3"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_soft_affinity(pcpus: MakePcpus, scheduler: str) -> None:
    """A vCPU is on the pCPU that it prefers when that is free, and on another when that is taken.

    docs/man/xl.1, vcpu-pin: "Soft affinity: the set of pCPUs on which a vCPU prefers to run".
    """
    host = pcpus("g0", "g1", xen_args=(f"sched={scheduler}",))
    host.spin("g0")
    host.pin("g0", "all", "3")
    host.wait_on("g0", {3})
    host.stays_on("g0", {3})
    host.pin("g1", "3")
    host.spin("g1")
    host.wait_on("g0", {0, 1, 2})
    host.works("g0")
    assert (host.vcpu("g0").hard, host.vcpu("g0").soft) == ("all", "3")


def test_dom0_is_pinned_at_boot(pcpus: MakePcpus) -> None:
    """With ``dom0_vcpus_pin`` each vCPU of dom0 stays on the pCPU of its own number.

    docs/misc/xen-command-line.pandoc, dom0_vcpus_pin.
    """
    host = pcpus(xen_args=("dom0_vcpus_pin",), dom0_vcpus=2)
    dom0 = [each for each in host.vcpus() if each.name == "Domain-0"]
    assert [(each.cpu, each.hard) for each in dom0] == [(0, "0"), (1, "1")]


def test_dom0_is_pinned(pcpus: MakePcpus) -> None:
    """dom0 goes where ``xl vcpu-pin`` sends it, and works there."""
    host = pcpus()
    for cpu in (2, 1):
        host.pin("Domain-0", str(cpu))
        host.wait_on("Domain-0", {cpu})
        host.stays_on("Domain-0", {cpu})


@pytest.mark.needs("amd64")
def test_cpu_goes_offline_and_comes_back(pcpus: MakePcpus, figure: Figure) -> None:
    """A pCPU that is taken offline has its guests move to others; back online, it is used again.

    docs/man/xl.1 has no word on it; ``xen-hptool cpu-offline`` (tools/misc/xen-hptool.c).
    """
    host = pcpus("g0")
    host.pin("g0", "all", str(CPUS - 1))
    host.spin("g0")
    host.wait_on("g0", {CPUS - 1})
    host.host.succeed("xen-hptool", "cpu-offline", CPUS - 1)
    assert host.host.xl.info().nr_cpus == CPUS - 1
    host.stays_on("g0", set(range(CPUS - 1)))
    host.host.succeed("xen-hptool", "cpu-online", CPUS - 1)
    figure("pCPUs online", host.host.xl.info().nr_cpus)
    assert host.host.xl.info().nr_cpus == CPUS
    host.pin("g0", str(CPUS - 1))
    host.wait_on("g0", {CPUS - 1})
    host.stays_on("g0", {CPUS - 1})


def test_pinning_to_no_cpu_is_refused(pcpus: MakePcpus) -> None:
    """A hard affinity to a pCPU that is not there is refused, and the vCPU's stays what it was."""
    host = pcpus("g0")
    host.host.fail("xl", "vcpu-pin", "g0", "0", str(CPUS + 3))
    assert host.vcpu("g0").hard == "all"
