"""Disks that DRBD replicates to another host come to guests and go again: Xen's script makes their host primary.

Two hosts on a private link have a replica each and a guest each. Which of them has the disk changes; what was written
has to be on both.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fixtures.guests import with_guest
from fixtures.hotplug import Rounds
from fixtures.pairs import Join
from suites.hotplug.use import SOME_TIMES, read_back, write_anew
from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host import drbd
from xentests.host.drbd import Drbd, Replica
from xentests.host.guest_spec import Disk, GuestSpec
from xentests.host.guests import Guest
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

pytestmark = pytest.mark.needs("drbd", "pv")

GUEST = GuestSpec(kind="pv")
DISK = Disk(drbd.NAME, vdev="xvdb", script="block-drbd")

_STOP = "/tmp/stop"
# One block of random data after the other, each on the disk before the next; the number of the last one is a file.
_WRITER = (
    f"(n=0; while [ ! -e {_STOP} ]; do n=$((n + 1)); dd if=/dev/urandom of=/dev/xvdb bs=64k count=1 "
    "seek=$((n % 200)) conv=fsync,notrunc 2>/dev/null || echo $n >> /tmp/failed; "
    "echo $n > /tmp/new; mv /tmp/new /tmp/written; done; touch /tmp/stopped) & true"
)


@dataclass(frozen=True)
class Side:
    """A host with a replica and its guest."""

    replica: Replica
    guest: Guest


@dataclass(frozen=True)
class Site:
    """Two hosts whose replicas are in step, and used by neither guest."""

    drbd: Drbd
    a: Side
    b: Side

    def roles(self) -> tuple[str, str]:
        """The roles of both sides, each as it says itself, the other having said the same of it."""
        mine, theirs = self.a.replica.status(), self.b.replica.status()
        assert (mine.role, mine.peer_role) == (theirs.peer_role, theirs.role)
        return mine.role, theirs.role

    def content(self) -> str:
        """The checksum of the whole disk, which nobody uses; both replicas have to have the same."""
        self.drbd.wait_in_step()
        mine, theirs = self.a.replica.checksum(), self.b.replica.checksum()
        assert mine == theirs
        return mine


@pytest.fixture
def site(hosts: Hosts, one_cpu: Machine, join: Join) -> Site:
    """Two hosts of one template, with a replica and a guest each."""
    # What comes and goes makes the guest's kernel talk, on the console on which commands are answered.
    state = with_guest(GUEST, key=drbd.RECIPE, before=drbd.prepare, settle=lambda guest: guest.succeed("dmesg -n 1"))
    machine = one_cpu.with_(link=True)
    pair = join(hosts.pristine(machine=machine, prepared=state), hosts.pristine(machine=machine, prepared=state))
    both = Drbd(pair)
    both.start()
    return Site(both, Side(both.a, pair.a.guests.made[GUEST.name]), Side(both.b, pair.b.guests.made[GUEST.name]))


def written(guest: Guest) -> int:
    """How many blocks the writer has on the disk."""
    return int(guest.run("cat /tmp/written 2>/dev/null || echo 0").text)


def goes_on(guest: Guest, blocks: int = 5) -> None:
    """The writer has ``blocks`` more of them written, each without an error."""
    target = written(guest) + blocks
    what = f"guest {guest.name} to have written block {target}"
    until(lambda: written(guest) >= target, what=what, deadline=60.0, error=ProductFailure)
    assert not failed(guest)


def failed(guest: Guest) -> str:
    """The numbers of the blocks for which the writer got an error."""
    return guest.run("cat /tmp/failed 2>/dev/null").text


def stop(guest: Guest) -> None:
    """The writer writes no more, and never got an error."""
    guest.succeed(f"touch {_STOP}")
    guest.wait_for("ls /tmp/stopped", "/tmp/stopped")
    assert not failed(guest)


def test_data_is_on_both_hosts(site: Site) -> None:
    """What a guest writes is on both replicas, byte for byte, and a guest of the other host reads it there.

    docs/man/xl-disk-configuration.5, "script"; DRBD 8.4 user's guide, "Using Xen with DRBD"; drbd.conf-8.4(5),
    protocol C: a write is done when it has reached both disks.
    """
    blank = site.content()
    disk = site.a.guest.devices.attach(DISK)
    data = write_anew(disk)
    assert read_back(disk) == data
    disk.detach()
    assert site.content() != blank
    assert read_back(site.b.guest.devices.attach(DISK)) == data


@pytest.mark.long
def test_roles_follow_the_disk(site: Site, rounds: Rounds) -> None:
    """A host is primary exactly while its guest has the disk; rounds of it leave nothing behind, and lose no data.

    /etc/xen/scripts/block-drbd: "This will direct Xen to put the DRBD resource ... into the Primary role";
    docs/misc/block-scripts.txt: what the script did when a device was added it undoes when it is removed.
    """
    guest, data = site.a.guest, ""
    guest.devices.attach(DISK).detach()
    before = guest.host.leaks.snapshot()
    assert site.roles() == ("Secondary", "Secondary")
    for _ in range(rounds(SOME_TIMES)):
        disk = guest.devices.attach(DISK)
        assert site.roles() == ("Primary", "Secondary")
        assert not data or read_back(disk) == data
        data = write_anew(disk)
        disk.detach()
        assert site.roles() == ("Secondary", "Secondary")
    guest.host.leaks.check(before)
    site.content()


@pytest.mark.long
def test_disk_from_the_beginning(site: Site) -> None:
    """A guest that is created with a replicated disk has it, and its end makes the host secondary again.

    docs/man/xl.cfg.5, "disk"; /etc/xen/scripts/block-drbd, which has this very line as its example.
    """
    host = site.a.guest.host
    second = host.guests.create(GuestSpec(name="second", kind="pv", disks=(DISK,)))
    assert site.roles() == ("Primary", "Secondary")
    second.succeed("dmesg -n 1")
    data = write_anew(second.devices.find(DISK))
    host.guests.destroy(second)
    until(
        lambda: site.roles() == ("Secondary", "Secondary"),
        what="the host to be secondary",
        deadline=20.0,
        error=ProductFailure,
    )
    assert read_back(site.b.guest.devices.attach(DISK)) == data


@pytest.mark.long
def test_link_is_cut_while_the_guest_writes(site: Site) -> None:
    """The guest does not notice that the link is cut, nor that it is mended: the other replica then catches up.

    DRBD 8.4 user's guide, "Efficient synchronization", and "Status information in /proc/drbd" (WFConnection).
    """
    guest, (a, b) = site.a.guest, (site.a.replica, site.b.replica)
    disk = guest.devices.attach(DISK)
    guest.succeed(_WRITER)
    goes_on(guest)
    site.drbd.pair.cable.cut()
    for replica in (a, b):
        replica.wait("the other side to be missed", lambda status: status.connection == "WFConnection")
    goes_on(guest)
    alone = a.wait("blocks to be noted for later", lambda status: status.out_of_sync_kib > 0)
    assert (alone.role, alone.disk, alone.peer_disk) == ("Primary", "UpToDate", "DUnknown")
    assert a.stored() != b.stored()
    site.drbd.pair.cable.mend()
    site.drbd.wait_in_step()
    goes_on(guest)
    stop(guest)
    # Of the whole disk: `site` has the same of both replicas.
    seen = guest.succeed("echo 3 > /proc/sys/vm/drop_caches; sha256sum < /dev/xvdb", timeout_s=60).split()[0]
    disk.detach()
    assert site.content() == seen


@pytest.mark.long
def test_disk_is_detached_while_the_link_is_cut(site: Site) -> None:
    """A disk that was written to when the link was cut can be detached, and nothing is left of it.

    docs/man/xl.1, block-detach; DRBD 8.4 user's guide, "Efficient synchronization".
    """
    guest, (a, b) = site.a.guest, (site.a.replica, site.b.replica)
    guest.devices.attach(DISK).detach()
    before = guest.host.leaks.snapshot()
    disk = guest.devices.attach(DISK)
    guest.succeed(_WRITER)
    goes_on(guest)
    site.drbd.pair.cable.cut()
    a.wait("the other side to be missed", lambda status: status.connection == "WFConnection")
    stop(guest)
    disk.detach()
    guest.host.leaks.check(before)
    assert a.status().role == "Secondary"
    assert a.stored() != b.stored()
    site.drbd.pair.cable.mend()
    site.content()


@pytest.mark.long
def test_other_host_takes_over(site: Site) -> None:
    """When a host is out of reach, a guest of the other gets the disk with all that had been written.

    Both then wrote: the mended link is refused, and neither's data is lost to the other's. drbd.conf-8.4(5),
    after-sb-2pri, which is to disconnect unless set; DRBD 8.4 user's guide, "Manual split brain recovery": at least
    one of the sides is then StandAlone.
    """
    disk = site.a.guest.devices.attach(DISK)
    data = write_anew(disk)
    site.drbd.pair.cable.cut()
    site.b.replica.wait("the other side to be missed", lambda status: status.connection == "WFConnection")
    taken = site.b.guest.devices.attach(DISK)
    assert read_back(taken) == data
    other = write_anew(taken)
    mine = write_anew(disk)
    site.drbd.pair.cable.mend()
    until(
        lambda: "StandAlone" in (side.replica.status().connection for side in (site.a, site.b)),
        what="a split brain to be noticed",
        deadline=60.0,
        error=ProductFailure,
    )
    for side in (site.a, site.b):
        assert side.replica.status().disk == "UpToDate"
        side.guest.succeed("echo 3 > /proc/sys/vm/drop_caches")
    assert (read_back(disk), read_back(taken)) == (mine, other)


@pytest.mark.long
def test_other_host_has_the_disk(site: Site) -> None:
    """A disk that a guest of the other host has is refused, with DRBD's reason in the log, and nothing is left of it.

    DRBD 8.4 user's guide, "Single-primary mode"; docs/misc/block-scripts.txt; docs/man/xl.1, block-attach.
    """
    guest, host = site.a.guest, site.a.guest.host
    taken = site.b.guest.devices.attach(DISK)
    before = host.leaks.snapshot()
    refused = guest.devices.try_attach(DISK)
    assert refused.exit_code != 0
    assert "/etc/xen/scripts/block-drbd failed" in refused.stderr.decode()
    log = host.read_file("/var/log/xen/xen-hotplug.log").decode()
    assert "Multiple primaries not allowed by config" in log
    assert site.roles() == ("Secondary", "Primary")
    data = write_anew(taken)
    left = host.leaks.snapshot().since(before)
    guest.devices.find(DISK).try_detach()
    host.leaks.check(before)
    taken.detach()
    assert read_back(guest.devices.attach(DISK)) == data
    if left:
        pytest.xfail("libxl leaves the nodes of a device whose script failed until it is detached (libxl_device.c)")
