"""Disks that reach dom0 by iSCSI come to guests and go again: Xen's script logs in and out as they do.

QEMU can be the initiator, too, for a disk that it emulates. Target and initiator are both in dom0, so a disk's content
can be compared with the file behind it.
"""

from __future__ import annotations

import pytest

from fixtures.guests import with_guest
from fixtures.hotplug import Rounds
from suites.hotplug.use import SOME_TIMES
from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.guest_spec import Disk, GuestSpec
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.host.iscsi import Iscsi, Target
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

pytestmark = pytest.mark.needs("iscsi", "pv")

GUEST = GuestSpec(kind="pv")
TARGET = Target("iqn.2026-01.org.xentests:disk", "/var/tmp/disk.img")
DISK = Disk(TARGET.params, vdev="xvdb", script="block-iscsi")
MIB = 8
_DISK_DRIVERS = "-e ata -e scsi -e t10 -e sd_"


def offer(host: Host) -> None:
    """An initiator and a target."""
    iscsi = Iscsi(host)
    iscsi.start()
    iscsi.export("disk", size_mib=MIB)


@pytest.fixture
def guest(hosts: Hosts, one_cpu: Machine) -> Guest:
    """A guest that has been running all along, on a host that offers ``TARGET``."""
    # What comes and goes makes a guest's kernel talk, on the console on which commands are answered.
    prepared = with_guest(GUEST, key="iscsi", before=offer, settle=lambda guest: guest.succeed("dmesg -n 1"))
    return hosts.pristine(machine=one_cpu, prepared=prepared).guests.made[GUEST.name]


def test_data_reaches_the_target(guest: Guest) -> None:
    """What a guest writes to an iSCSI disk is on the target when the disk is gone, and read again when it is back.

    docs/man/xl-disk-configuration.5, "script"; docs/misc/block-scripts.txt.
    """
    disk = guest.devices.attach(DISK)
    written = guest.succeed("dd if=/dev/urandom of=/tmp/data bs=1M count=4 2> /dev/null; md5sum < /tmp/data")
    guest.succeed("dd if=/tmp/data of=/dev/xvdb bs=64k conv=fsync", timeout_s=60)
    disk.detach()
    stored = guest.host.succeed("sh", "-c", f"head -c 4M {TARGET.file} | md5sum").text
    assert stored.strip() == written
    guest.devices.attach(DISK)
    assert guest.succeed("head -c 4096k /dev/xvdb | md5sum", timeout_s=60) == written


def test_sessions_follow_the_disk(guest: Guest, rounds: Rounds) -> None:
    """dom0 is logged in to the target exactly while a guest has the disk, and rounds of it leave nothing behind.

    docs/misc/block-scripts.txt: the script connects a device when it is added and lets it go when it is removed.
    """
    guest.devices.attach(DISK).detach()
    iscsi, before = Iscsi(guest.host), guest.host.leaks.snapshot()
    for _ in range(rounds(SOME_TIMES)):
        disk = guest.devices.attach(DISK)
        assert iscsi.sessions() == [TARGET.iqn]
        disk.detach()
        assert not iscsi.sessions()
    guest.host.leaks.check(before)


def test_target_that_is_not_there(guest: Guest) -> None:
    """A disk of an unknown target is refused in the script's own words, no session stays, and the guest runs on.

    docs/misc/block-scripts.txt; /etc/xen/scripts/block-iscsi: "No matching target iqn found".
    """
    nowhere = Disk(TARGET.params.replace(":disk", ":nowhere"), vdev="xvdb", script="block-iscsi")
    refused = guest.devices.try_attach(nowhere)
    assert refused.exit_code != 0
    assert "No matching target iqn found" in refused.stderr.decode()
    assert not Iscsi(guest.host).sessions()
    guest.wait_tick()


@pytest.mark.long
def test_disk_from_the_beginning(guest: Guest) -> None:
    """A guest that is created with an iSCSI disk has it, and its end logs dom0 out.

    docs/man/xl.cfg.5, "disk"; docs/misc/block-scripts.txt.
    """
    iscsi = Iscsi(guest.host)
    spec = GuestSpec(name="second", kind="pv", disks=(DISK,))
    second = guest.host.guests.create(spec)
    assert second.succeed("cat /sys/block/xvdb/size") == str(MIB * 2048)
    assert iscsi.sessions() == [TARGET.iqn]
    guest.host.guests.destroy(second)
    until(lambda: not iscsi.sessions(), what="dom0 to be logged out", deadline=20.0, error=ProductFailure)


@pytest.mark.needs("qemu-iscsi", "hvm-guests")
def test_qemu_is_the_initiator(hosts: Hosts, one_cpu: Machine) -> None:
    """QEMU itself is logged in to the target of a disk that it emulates, dom0's kernel is not, and data gets there.

    docs/man/xl-disk-configuration.5, "backendtype" and "target", which libxl hands to QEMU as it is where the back end
    is said to be qdisk; QEMU's documentation, "Device URL Syntax".
    """
    host = hosts.pristine(machine=one_cpu)
    iscsi = Iscsi(host)
    iscsi.start()
    target = iscsi.export("disk", size_mib=MIB)
    # Linux has an HVM guest's emulated disks unplugged unless told otherwise; the back end for the other kind takes
    # its target for a file (hw/block/xen-block.c).
    disk = Disk(target.url, vdev="hda", backend="qdisk")
    spec = GuestSpec(kind="hvm", memory_mib=160, kernel_args="xen_emul_unplug=never", disks=(disk,))
    guest = host.guests.create(spec)
    guest.succeed(f"dmesg -n 1; for name in $(grep {_DISK_DRIVERS} /modules/more); do insmod /modules/$name; done")
    guest.wait_for("cat /sys/block/sda/size", str(MIB * 2048))
    assert not iscsi.sessions()
    written = guest.succeed("dd if=/dev/urandom of=/tmp/data bs=1M count=1 2> /dev/null; md5sum < /tmp/data")
    guest.succeed("dd if=/tmp/data of=/dev/sda bs=64k conv=fsync && echo 3 > /proc/sys/vm/drop_caches", timeout_s=60)
    assert guest.succeed("head -c 1024k /dev/sda | md5sum", timeout_s=60) == written
    assert host.succeed("sh", "-c", f"head -c 1M {target.file} | md5sum").text.strip() == written
