"""A guest of each kind without a device model comes up, answers, keeps time, comes again, and leaves nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from fixtures.guests import KINDS, with_guest
from xentests.host.capabilities import Capability
from xentests.host.guest_spec import GuestSpec, Kind
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

SMALL = [kind for kind in KINDS if kind.id != "hvm"]
"""Those without a device model, which start in half the time; suites/lifecycle has them all."""

TIMES = 2


def spec_of(kind: Kind) -> GuestSpec:
    """The guest of that kind that these tests look at."""
    return GuestSpec(kind=kind, vcpus=2, memory_mib=160, kernel_args="xentests.mark=17")


@pytest.fixture
def machine(machine: Machine) -> Machine:
    """Hosts of these tests have one CPU: a guest in hardware may be ended by the emulation of two (decision 19)."""
    return machine.with_(cpus=1)


@pytest.fixture
def running(hosts: Hosts, machine: Machine, kind: Kind) -> Guest:
    """A guest of that kind on a pristine host, which has been running for a moment."""
    spec = spec_of(kind)
    return hosts.pristine(machine=machine, prepared=with_guest(spec)).guests.made[spec.name]


@pytest.mark.parametrize("kind", SMALL)
def test_guest_comes_and_goes(xen_host: Host, kind: Kind) -> None:
    """Created, it says that it is up and answers; destroyed, it leaves nothing; and so again under the same name.

    Nothing: no domain, xenstore node, process, device or file, and none of Xen's memory.
    """
    before = xen_host.leaks.snapshot()
    domids = []
    for _ in range(TIMES):
        guest = xen_host.guests.create(GuestSpec(kind=kind))
        domids.append(guest.domid)
        assert guest.console.run("uname -s").text == "Linux\n"
        assert f"domain guest (id {guest.domid})" in xen_host.leaks.snapshot().since(before)
        xen_host.guests.destroy(guest)
        xen_host.leaks.check(before)
    assert domids == sorted(set(domids))


@pytest.mark.parametrize("kind", SMALL)
def test_guest_answers(running: Guest) -> None:
    """The shell on the guest's console runs commands and tells how they ended."""
    assert running.console.run("echo one; echo two").text == "one\ntwo\n"
    assert running.console.run("false").exit_code == 1


@pytest.mark.parametrize("kind", SMALL)
def test_guest_has_what_it_was_given(running: Guest) -> None:
    """CPUs, memory and kernel arguments of the guest are those of its configuration, seen from inside and outside."""
    info = running.info
    assert info is not None
    assert info.vcpus == running.spec.vcpus
    assert 0 <= running.spec.memory_mib - info.memory_mib <= 1  # a balloon driver may give back some pages
    assert running.console.run("nproc").text == f"{running.spec.vcpus}\n"
    memory_kib = int(running.console.run("awk '/^MemTotal/ { print $2 }' /proc/meminfo").text)
    assert 0.6 < memory_kib / 1024 / running.spec.memory_mib < 1
    assert running.spec.kernel_args in running.console.run("cat /proc/cmdline").text.split()


@pytest.mark.parametrize("kind", SMALL)
def test_guest_keeps_time(running: Guest) -> None:
    """The guest's clock ticks on, once a second of its own time, without a gap and never back."""
    for _ in range(3):
        running.wait_tick()
    pairs = list(itertools.pairwise(running.ticks()))
    assert pairs
    for earlier, later in pairs:
        assert later.number == earlier.number + 1
        assert later.uptime_s - earlier.uptime_s >= 1


@pytest.mark.parametrize("kind", SMALL)
def test_guest_reboots_itself(running: Guest) -> None:
    """A guest that reboots is started again by the toolstack, as another domain with the same name."""
    first = running.domid
    running.console.send("reboot -f\r")
    running.wait_reboot()
    assert running.domid > first
    assert running.console.run("echo again").text == "again\n"


@pytest.mark.parametrize("kind", SMALL)
def test_guest_powers_itself_off(xen_host: Host, running: Guest) -> None:
    """A guest that powers itself off is cleaned up by the toolstack: its host is then like one that never had it."""
    running.console.send("poweroff -f\r")
    running.wait_gone()
    running.host.leaks.check(xen_host.leaks.snapshot())


@pytest.mark.parametrize("kind", SMALL)
def test_crashed_guest_does_not_harm_its_host(running: Guest, capabilities: Mapping[str, Capability]) -> None:
    """The kernel panic of a guest is the guest's alone: its domain is marked as crashed, and the host goes on.

    Linux tells Xen of its panic on x86 only (arch/x86/xen/enlighten.c, xen_panic_event); on arm64 it spins for ever.
    """
    running.console.send("echo c >/proc/sysrq-trigger\r")
    running.log.wait_for("Kernel panic - not syncing", 60)
    if capabilities["amd64"]:
        running.wait_crashed()
    running.destroy()
    assert [domain.name for domain in running.host.xl.list()] == ["Domain-0"]
