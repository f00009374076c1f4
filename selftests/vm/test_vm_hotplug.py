"""What the hotplug suite relies on to notice: each way of its using a device is tried on one that was sabotaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.hotplug import LOOP, NIC, RAW, growing, plugging
from suites.hotplug import test_disks
from suites.hotplug.test_memory import memory, reaches
from suites.hotplug.use import bring_up, ping_and_verify
from xentests.errors import CommandFailed
from xentests.host.devices import DeviceFailure
from xentests.host.guest_log import GuestFailure
from xentests.host.guests import Guest
from xentests.session import Session


@pytest.fixture
def guest(session: Session, runs: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A PV guest on a clone with disks and a bridge, with one CPU as the suite's."""
    machine = session.machine.with_(cpus=1)
    prepared = plugging(growing("pv", machine))
    template = session.derive(session.template(machine), key=prepared.key, prepare=prepared.prepare)
    host = session.clone(template, name=request.node.name, log_dir=runs / request.node.name, standby=False)
    prepared.attached(host)
    yield host.guests.made["guest"]
    session.end(host)


def test_detached_back_end(guest: Guest) -> None:
    """A back end that is taken away is neither connected nor in use, and the error has the states of both ends."""
    disk = guest.devices.attach(LOOP)
    guest.host.xenstore.rm(disk.back)
    with pytest.raises(DeviceFailure, match=r"xvdb \(vbd 51728\) of guest guest is not connected(?s:.*)back end gone"):
        disk.wait_connected(1)


def test_killed_back_end(guest: Guest) -> None:
    """A device that does not go is said not to be gone, in which states, and how long was waited."""
    disk = guest.devices.attach(RAW)
    with pytest.raises(DeviceFailure, match=r"is not gone within (?s:.*): front end connected, back end connected"):
        disk.wait_gone(0.5)


def test_dropped_packet(guest: Guest) -> None:
    """A single packet that does not arrive fails the count."""
    nic = guest.devices.attach(NIC)
    bring_up(nic, "10.0.0.2")
    ping_and_verify(nic)
    guest.host.succeed("tc", "qdisc", "add", "dev", nic.name, "root", "netem", "loss", "100%", "limit", 1)
    with pytest.raises(AssertionError, match="answered="):
        ping_and_verify(nic, count=3)


SPOILING = f"""#!/bin/sh
# Spoils four bytes of the disk before the second attachment.
[ $1 = remove ] || [ ! -e /run/attached ] || printf spoilt | dd of={LOOP.target} bs=1 seek=70001 conv=notrunc,fsync
touch /run/attached
exec /etc/xen/scripts/block.real "$@"
"""


def test_corrupted_block(guest: Guest) -> None:
    """A few bytes that change behind the guest's back turn suites/hotplug's test of disks red."""
    host, script = guest.host, "/etc/xen/scripts/block"
    host.succeed("mv", script, f"{script}.real")
    host.write_file(script, SPOILING.encode(), mode=0o755)
    with pytest.raises(AssertionError, match=r"<vbd 51728 of <guest guest .*> holds \w{16}\.\.\., was left with "):
        test_disks.test_attach_use_detach(guest, "phy", lambda few: few)


def test_unknown_disk(guest: Guest) -> None:
    """What xl refuses is raised with what it said."""
    with pytest.raises(CommandFailed, match="not connected"):
        guest.devices.find(LOOP).detach()


def test_memory_that_is_not_given(guest: Guest) -> None:
    """A balloon that is held where it was has the wait for it fail."""
    before = memory(guest)
    held = "while :; do echo 134217728 > /sys/devices/system/xen_memory/xen_memory0/target; done"
    guest.succeed(f"({held}) & true")
    with pytest.raises(GuestFailure, match="had to print 'reached' within"):
        reaches(guest, -16, before)
