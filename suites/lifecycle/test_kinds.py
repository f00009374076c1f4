"""What a guest can be: many of them, with many vCPUs, talkative, started by UEFI, PV within PVH."""

from __future__ import annotations

import pytest

from fixtures.guests import NO_THREADS
from xentests.host.guest_log import GuestFailure
from xentests.host.guest_spec import GuestSpec, Kind
from xentests.host.guests import Guest
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

UEFI_QEMU, UEFI_MIB = "debian:trixie", 256
SHIM_CPU = "Nehalem,vendor=AuthenticAMD,+svm,+npt"
TALK_BYTES = 1 << 20
MEMORY_MIB, GUEST_MIB = 8192, 1152


def test_console_survives_much_output(own_guest: Guest) -> None:
    """A guest that prints 1 MiB at once loses none of it: the log has every byte, and the console still answers."""
    line = "abcdefghijklmnopqrstuvwxyz0123456789" * 3
    count = TALK_BYTES // (len(line) + 1)
    own_guest.succeed(f"yes {line} | head -n {count}", timeout_s=120)
    said = own_guest.log.raw().replace(b"\r", b"")
    assert said.count(line.encode()) >= count
    assert own_guest.succeed("echo still here") == "still here"


# Each vCPU of a guest in hardware takes an emulated CPU seconds to boot, and 16 of them keep it busy for a minute.
@pytest.mark.parametrize(
    ("kind", "vcpus"),
    [
        pytest.param("pv", 16, marks=pytest.mark.needs("pv"), id="pv"),
        pytest.param("pvh", 4, marks=pytest.mark.needs("pvh"), id="pvh"),
    ],
)
def test_many_vcpus(hosts: Hosts, one_cpu: Machine, kind: Kind, vcpus: int) -> None:
    """A guest with many times as many vCPUs as there are CPUs sees and uses each of them.

    docs/man/xl.cfg.5, "vcpus".
    """
    host = hosts.pristine(machine=one_cpu)
    cpuid = NO_THREADS if kind == "pvh" else ""
    guest = host.guests.create(GuestSpec(kind=kind, vcpus=vcpus, memory_mib=192, cpuid=cpuid))
    assert guest.succeed("nproc") == str(vcpus)
    for cpu in range(vcpus):
        guest.succeed(f"taskset {1 << cpu:x} true")
    listed = host.succeed("xl", "vcpu-list", guest.name).text.split("\n")[1:]
    assert len(listed) == vcpus


def test_many_guests(hosts: Hosts, one_cpu: Machine) -> None:
    """As many guests as 8 GiB hold run at once, each under its own name; one more is refused, and harms none of them.

    docs/man/xl.1, "create".
    """
    host = hosts.pristine(machine=one_cpu.with_(memory_mib=MEMORY_MIB), again=False)
    free = host.xl.info().free_memory
    names = [f"guest{number}" for number in range(free // (GUEST_MIB + 8))]
    guests = []
    for name in names:
        guests.append(host.guests.create(GuestSpec(name=name, memory_mib=GUEST_MIB)))
        guests[-1].xl("pause")  # so that the next one has the CPU to itself while it boots
    host.write_file("/run/more.cfg", GuestSpec(name="more", memory_mib=2 * GUEST_MIB).config(host.arch).encode())
    host.fail("xl", "create", "/run/more.cfg", timeout_s=60)
    for guest in guests:
        guest.xl("unpause")
    for guest in guests:
        guest.wait_tick()
    assert [entry.name for entry in host.xl.list()] == ["Domain-0", *names]


@pytest.mark.needs("pv", "pvh", "pv-shim")
def test_pv_shim(hosts: Hosts, machine: Machine) -> None:
    """A PV guest runs inside a PVH container: Xen sees PVH, the guest's kernel PV; it shuts down.

    docs/misc/xen-command-line.pandoc, "shim-mem"; docs/man/xl.cfg.5, "pvshim". The shim does not boot on a CPU as
    bare as the usual one, and keeps memory for itself.
    """
    host = hosts.pristine(machine=machine.with_(cpus=1, cpu_model=SHIM_CPU), again=False)
    guest = host.guests.create(GuestSpec(kind="shim", memory_mib=384))
    assert guest.succeed("cat /sys/hypervisor/guest_type") == "PV"
    assert host.succeed("xenstore-read", f"/libxl/{guest.domid}/type").text == "pvh"
    guest.wait_tick()
    guest.xl("shutdown", "-w", timeout_s=60)
    guest.wait_gone()


@pytest.mark.needs("hvm-guests", "ovmf")
def test_uefi_guest(hosts: Hosts, one_cpu: Machine) -> None:
    """An HVM guest is started by UEFI, whose tables and variables it has; it shuts down in order.

    docs/man/xl.cfg.5, "firmware". The QEMU of Debian 12 ends when OVMF runs in a nested guest, so the host has a newer.
    """
    host = hosts.pristine(machine=one_cpu.with_(qemu=UEFI_QEMU), again=False)
    try:
        guest = host.guests.create(GuestSpec(kind="hvm", firmware="ovmf", memory_mib=UEFI_MIB))
    except GuestFailure:
        old = host.xl.info().release <= (4, 17)  # whose Debian has that OVMF
        if old and "CR access emulation failed" in host.xl.dmesg():
            pytest.skip("not on this machine: OVMF up to 2022.11 meets an exception under QEMU, and reads CR8 in it")
        raise
    assert guest.succeed("cat /sys/firmware/efi/fw_platform_size") == "64"
    assert "efi: EFI v2" in guest.succeed("dmesg | grep efi:")
    guest.wait_tick()
    guest.xl("shutdown", "-w", timeout_s=60)
    guest.wait_gone()
