"""What a guest can be: many of them, with many vCPUs, talkative."""

from __future__ import annotations

import pytest

from xentests.host.guest_spec import GuestSpec, Kind
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

VCPUS = 16
TALK_BYTES = 1 << 20
MEMORY_MIB, GUEST_MIB = 8192, 448


def test_console_survives_much_output(pv_guest: Guest) -> None:
    """A guest that prints 1 MiB at once loses none of it: the log has every byte, and the console still answers."""
    line = "abcdefghijklmnopqrstuvwxyz0123456789" * 3
    count = TALK_BYTES // (len(line) + 1)
    pv_guest.succeed(f"yes {line} | head -n {count}", timeout_s=120)
    said = pv_guest.log.raw().replace(b"\r", b"")
    assert said.count(line.encode()) >= count
    assert pv_guest.succeed("echo still here") == "still here"


@pytest.mark.parametrize(
    "kind", [pytest.param("pv", marks=pytest.mark.needs("pv")), pytest.param("pvh", marks=pytest.mark.needs("pvh"))]
)
def test_many_vcpus(xen_host: Host, kind: Kind) -> None:
    """A guest with eight times as many vCPUs as there are CPUs sees and uses each of them.

    docs/man/xl.cfg.5, "vcpus".
    """
    guest = xen_host.guests.create(GuestSpec(kind=kind, vcpus=VCPUS, memory_mib=192))
    assert guest.succeed("nproc") == str(VCPUS)
    for cpu in range(VCPUS):
        guest.succeed(f"taskset {1 << cpu:x} true")
    listed = xen_host.succeed("xl", "vcpu-list", guest.name).text.split("\n")[1:]
    assert len(listed) == VCPUS


def test_many_guests(hosts: Hosts, machine: Machine) -> None:
    """As many guests as 8 GiB hold run at once, each under its own name; one more is refused, and harms none of them.

    docs/man/xl.1, "create".
    """
    host = hosts.pristine(machine=machine.with_(memory_mib=MEMORY_MIB))
    free = host.xl.info().free_memory
    names = [f"guest{number}" for number in range(free // (GUEST_MIB + 8))]
    guests = [host.guests.create(GuestSpec(name=name, memory_mib=GUEST_MIB), ready_s=None) for name in names]
    host.write_file("/run/more.cfg", GuestSpec(name="more", memory_mib=2 * GUEST_MIB).config(host.arch).encode())
    host.fail("xl", "create", "/run/more.cfg", timeout_s=60)
    for guest in guests:
        guest.wait_ready()
    assert [entry.name for entry in host.xl.list()] == ["Domain-0", *names]
