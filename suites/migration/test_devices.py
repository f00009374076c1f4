"""A guest moves with a disk that both hosts reach and an interface on a bridge that spans them, while it uses both."""

from __future__ import annotations

import pytest

from fixtures.migration import Travellers
from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.guest_spec import Disk, GuestSpec, Nic
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.host.iscsi import Iscsi
from xentests.host.pair import Identity

pytestmark = pytest.mark.needs("save-restore", "pvh", "iscsi")

BRIDGE = "xenbr0"
GUEST_ADDRESS = "10.1.0.9"
BLOCKS = 40
"""How many blocks the guest writes in turn."""
# The cable's interface goes into the bridge, its address to the bridge, whose MTU would else be that of the guest's.
_BRIDGE = f"""
set -e
name=$(basename /sys/bus/virtio/drivers/virtio_net/virtio*/net/*)
ip -batch - << EOF
link add {BRIDGE} type bridge
link set {BRIDGE} mtu 65000
addr flush dev $name
link set $name master {BRIDGE}
addr add $1/24 dev {BRIDGE}
link set {BRIDGE} up
EOF
"""
# Each block holds its number all over, and is on the disk before the next. A guest that never rests takes its
# host's only CPU from what is to move it: this test took half as long again.
_WRITER = (
    "cd /tmp; (n=0; while [ ! -e stop ]; do n=$((n + 1)); yes $n | head -c 16384 | "
    f"dd of=/dev/xvdb bs=16k count=1 seek=$((n % {BLOCKS})) conv=fsync,notrunc 2>/dev/null || echo $n >> failed; "
    "echo $n > new; mv new written; sleep 0.1; done; touch stopped) & true"
)
_CHECK = (
    "cd /tmp; echo 3 > /proc/sys/vm/drop_caches; last=$(cat written); n=$last; "
    f"while [ $n -gt 0 ] && [ $n -gt $((last - {BLOCKS})) ]; do "
    f"dd if=/dev/xvdb bs=16k count=1 skip=$((n % {BLOCKS})) 2>/dev/null | sort -u | grep -qx $n || echo $n; "
    "n=$((n - 1)); done"
)


def number(guest: Guest, command: str) -> int:
    """What a command of the guest's prints, as a number; 0 for nothing."""
    return int(guest.run(f"{command} 2>/dev/null").text.strip() or 0)


def pings(guest: Guest, host: Host, address: str) -> None:
    """The guest reaches that address, and has it answer ten times out of ten."""
    text = guest.run(f"ping -c 10 -i 0.1 -W 5 {address}", timeout_s=60).text
    assert "10 packets received" in text, f"{guest} to {host.name}: {text}"


def test_disk_and_network_come_along(travellers: Travellers) -> None:
    """What the guest writes all along is on its disk, block by block, and both hosts answer it wherever it is.

    docs/man/xl.1, "migrate": the disks have to be reached from both hosts; docs/man/xl-disk-configuration.5, "script".
    """
    pair = travellers.pair()
    for host, identity in pair.sides:
        host.succeed("sh", "-c", _BRIDGE, "bridge", identity.address)
        Iscsi(host).start()
    pair.wait_reached()
    target = Iscsi(pair.a).export("disk", portal=f"{Identity(1).address}:3260")
    Iscsi(pair.b).expect(target)
    disk = Disk(target.params, vdev="xvdb", script="block-iscsi")
    guest = travellers.made(pair, GuestSpec(kind="pvh", disks=(disk,), nics=(Nic(bridge=BRIDGE),)))
    guest.guest.succeed(f"ip addr add {GUEST_ADDRESS}/24 dev eth0 && ip link set eth0 up")
    guest.guest.succeed(_WRITER)
    for _ in ("there", "back"):
        before = number(guest.guest, "cat /tmp/written")
        guest.go()
        until(
            lambda: number(guest.guest, "cat /tmp/written") > before + BLOCKS,  # noqa: B023
            what=f"{guest.guest} to write on",
            deadline=60.0,
            error=ProductFailure,
        )
        for host, identity in pair.sides:
            pings(guest.guest, host, identity.address)
    guest.guest.succeed("touch /tmp/stop")
    guest.guest.wait_for("ls /tmp/stopped", "/tmp/stopped")
    assert not guest.guest.run("cat /tmp/failed 2>/dev/null").text
    wrong = guest.guest.succeed(_CHECK, timeout_s=60)
    assert not wrong, f"blocks that are not on the disk: {wrong}"
    assert Iscsi(pair.a).sessions() == [target.iqn]
    assert not Iscsi(pair.b).sessions()
