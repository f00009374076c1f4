"""How a guest ends: asked to, from inside, by force; and what becomes of it then."""

from __future__ import annotations

import pytest

from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.guest_spec import Action, GuestSpec
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts, Prepared

PANIC = "echo c >/proc/sysrq-trigger\r"
DUMPS = "/var/lib/xen/dump"


def test_shutdown(guest: Guest) -> None:
    """`xl shutdown` asks the guest's kernel, which ends the guest in order.

    docs/man/xl.1, "shutdown": waits for the domain with -w; the domain's on_poweroff decides what follows.
    """
    guest.xl("shutdown", "-w")
    guest.wait_gone(10)


def test_reboot(guest: Guest) -> None:
    """`xl reboot` has the guest end in order and start again, as another domain of the same name.

    docs/man/xl.1, "reboot".
    """
    first = guest.domid
    guest.xl("reboot")
    guest.wait_reboot()
    assert guest.domid > first
    assert guest.succeed("echo again") == "again"


def test_destroy(guest: Guest) -> None:
    """`xl destroy` ends a busy guest at once, without asking it.

    docs/man/xl.1, "destroy": the equivalent of ripping the power cord out.
    """
    guest.console.send("while :; do :; done\r")
    guest.destroy()


CRASHES: dict[Action, tuple[int, int]] = {
    "destroy": (0, 0),
    "restart": (1, 0),
    "rename-restart": (2, 0),
    "preserve": (1, 0),
    "coredump-destroy": (0, 1),
    "coredump-restart": (1, 1),
}
"""Each action on a crash -> how many domains there are of the guest afterwards, and how many core dumps."""

SPECS = tuple(GuestSpec(name=action, on_crash=action, on_poweroff="preserve") for action in CRASHES)


@pytest.fixture
def six_guests(hosts: Hosts, one_cpu: Machine) -> Host:
    """A host with a paused guest for each action on a crash; all stay when they power themselves off.

    Paused, because each running Linux has timers to be served 250 times a second while it is busy: on a machine slowed
    down by others six of them keep each other busy for good.
    """

    def prepare(host: Host) -> None:
        for spec in SPECS:
            host.guests.create(spec).xl("pause")

    def attached(host: Host) -> None:
        for spec in SPECS:
            host.guests.attach(spec)

    prepared = Prepared(key=f"guests {SPECS}", prepare=prepare, attached=attached)
    return hosts.pristine(machine=one_cpu.with_(memory_mib=1536), prepared=prepared)


@pytest.mark.needs("amd64")
@pytest.mark.parametrize("action", CRASHES)
def test_crash(six_guests: Host, action: Action) -> None:
    """A guest that crashes is destroyed, started again, kept or dumped, as its on_crash says; no other is touched.

    docs/man/xl.cfg.5, "on_crash". (A Linux guest tells Xen of its panic on x86 only.)
    """
    domains, dumps = CRASHES[action]
    others = [entry for entry in six_guests.xl.list() if entry.name != action]
    guest = six_guests.guests.made[action]
    guest.xl("unpause")
    guest.console.send(PANIC)
    if "restart" in action:
        guest.wait_reboot()
    elif domains:
        guest.wait_crashed()
    else:
        guest.wait_gone()
    listed = {entry.domid: entry.name for entry in six_guests.xl.list()}
    mine = [name for domid, name in listed.items() if domid not in {other.domid for other in others}]
    assert len(mine) == domains
    assert action in mine or not domains
    assert {other.domid for other in others} <= set(listed)
    cores = six_guests.succeed("ls", DUMPS).text.split()
    assert len(cores) == dumps
    assert all(is_core(six_guests, f"{DUMPS}/{core}", guest.spec.memory_mib) for core in cores)
    six_guests.succeed("sh", "-c", f"rm -f {DUMPS}/*")


def test_preserved_poweroff(six_guests: Host) -> None:
    """With on_poweroff="preserve" a guest that has powered itself off stays, shut down, until it is destroyed.

    docs/man/xl.cfg.5, "on_poweroff".
    """
    guest = six_guests.guests.made["destroy"]
    guest.xl("unpause")
    guest.console.send("poweroff -f\r")
    until(lambda: guest.info and "s" in guest.info.state, what="its end", deadline=30, error=ProductFailure)
    assert guest.info is not None
    assert not guest.info.crashed
    guest.destroy()


def test_dump_core(own_guest: Guest) -> None:
    """`xl dump-core` writes the guest's memory into a file in ELF, and the guest goes on.

    docs/man/xl.1, "dump-core"; docs/misc/dump-core-format.txt.
    """
    path = "/root/core"
    own_guest.xl("dump-core", path)
    assert is_core(own_guest.host, path, own_guest.spec.memory_mib)
    own_guest.wait_tick()


def is_core(host: Host, path: str, memory_mib: int) -> bool:
    """Whether a file of dom0 is a core dump of that much memory: an ELF file that names the sections of the format."""
    size = int(host.succeed("stat", "-c", "%s", path).text)
    head = host.succeed("head", "-c", "4", path).stdout
    names = host.succeed("tail", "-c", "65536", path).stdout.split(b"\0")
    wanted = {b".note.Xen", b".xen_prstatus", b".xen_pages"}
    return head == b"\x7fELF" and size > memory_mib << 20 and wanted <= set(names)
