"""DRBD: one block device with a replica on each host of a pair, over their link.

Sources: drbd.conf-8.4(5), drbdadm-8.4(8), and the DRBD 8.4 user's guide, "Status information in /proc/drbd": the module
of mainline kernels is 8.4, whose tools drbd-utils 9 brings as drbdadm-84. Whatever uses the device is not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.pair import Identity, Pair
from xentests.text import tail

if TYPE_CHECKING:
    from xentests.host.host import Host

NAME = "r0"
DEVICE = "/dev/drbd0"
SIZE_MIB = 16
FILE = "/var/lib/xentests/replica"
_LOOP = "/dev/loop6"
_PORT = 7788
_SETTLE_S = 60.0
_HOSTS = (Identity(1), Identity(2))

# The longest that an emulated machine may be silent before its peer gives it up, and with it the longest that a cut
# link holds up a writer. `timeout` (tenths of seconds) has to be below the next two (seconds). A resync is not to be
# slowed for the writer's sake, as it is by default to some 1 MiB/s.
_CONFIG = f"""
resource {NAME} {{
    net {{ protocol C; timeout 40; ping-int 5; connect-int 5; ping-timeout 30; socket-check-timeout 5; }}
    disk {{ c-plan-ahead 0; resync-rate 20M; c-min-rate 20M; }}
    device {DEVICE};
    disk {_LOOP};
    meta-disk internal;
{"".join(f"    on {host.name} {{ address {host.address}:{_PORT}; }}{chr(10)}" for host in _HOSTS)}}}
"""
# The user's guide has disable_sendpage set where guests use DRBD ("Setting DRBD module parameters for use with Xen").
# Without, TCP sends from the guest's own pages, and keeps those that were under way when a link failed for ever: since
# Linux 151c9c724d05 a kernel's socket that is closed sends nothing again. Detaching the disk then never ends, and with
# it stands still all else that dom0's xenbus does (gnttab_unmap_refs_sync).
_PREPARE = f"""
set -e
modprobe drbd disable_sendpage=1
mkdir -p /var/lib/xentests /var/lib/drbd /run/drbd
truncate -s {SIZE_MIB}M {FILE}
losetup {_LOOP} {FILE}
hostname {_HOSTS[0].name}
drbdadm create-md --force {NAME}
hostname dom0
"""
RECIPE = f"{_CONFIG}{_PREPARE}"
"""All that ``prepare`` does, for the key of a template."""
_STATUS = re.compile(r"^ *0: cs:(\S+)(?: ro:(\w+)/(\w+) ds:(\w+)/(\w+))?.*(?:\n.*\boos:(\d+))?", re.MULTILINE)


@dataclass(frozen=True)
class Status:
    """What one host says of the resource: connection, roles and disks (its own, the other's), KiB out of sync."""

    connection: str
    role: str = "Unknown"
    peer_role: str = "Unknown"
    disk: str = "DUnknown"
    peer_disk: str = "DUnknown"
    out_of_sync_kib: int = 0

    @property
    def in_step(self) -> bool:
        """Both replicas are there and the same."""
        return (self.connection, self.disk, self.peer_disk) == ("Connected", "UpToDate", "UpToDate")


def parse_status(text: str) -> Status:
    """The line of device 0 in /proc/drbd. ``Unconfigured`` is a connection, too, and the same as no line at all."""
    match = _STATUS.search(text)
    if match is None or match[2] is None:
        return Status(match[1] if match else "Unconfigured")
    return Status(match[1], match[2], match[3], match[4], match[5], int(match[6] or 0))


def prepare(host: Host) -> None:
    """A blank replica that is not up yet: before a host is frozen, and the same on both."""
    host.write_file(f"/etc/drbd.d/{NAME}.res", _CONFIG.encode())
    host.succeed("sh", "-c", _PREPARE)


class Replica:
    """The resource on one of the hosts."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def status(self) -> Status:
        """What this side knows."""
        return parse_status(self.host.read_file("/proc/drbd").decode())

    def wait(self, what: str, wish: Callable[[Status], bool], timeout_s: float = _SETTLE_S) -> Status:
        """Wait for a status. Raises ProductFailure with the last one and what dom0's kernel said of it."""
        last = Status("Unconfigured")

        def look() -> bool:
            nonlocal last
            last = self.status()
            return wish(last)

        def late(message: str) -> ProductFailure:
            said = tail(self.host.run("sh", "-c", "dmesg | grep 'drbd\\|block drbd'").stdout)
            return ProductFailure(f"{self.host.name}: {NAME} is {last}: {message}\ndom0's kernel said:\n{said}")

        until(look, what=what, deadline=timeout_s, error=late, every_s=0.1)
        return last

    def admin(self, *words: str) -> None:
        """``drbdadm WORDS... r0``, which must work."""
        self.host.succeed("drbdadm", *words, NAME)

    def checksum(self) -> str:
        """SHA-256 of the whole device. A secondary cannot be read, so this side is made primary and secondary again."""
        self.admin("primary")
        found = self.host.succeed("sha256sum", DEVICE, timeout_s=60).text.split()[0]
        self.admin("secondary")
        return found

    def stored(self) -> str:
        """SHA-256 of what is below the device, metadata left out: whatever its state, and whoever uses it."""
        size = f"$(($(cat /sys/block/{DEVICE.rpartition('/')[2]}/size) * 512))"
        return self.host.succeed("sh", "-c", f"sync; head -c {size} {FILE} | sha256sum", timeout_s=60).text.split()[0]


class Drbd:
    """Both replicas of a pair of hosts that were frozen after ``prepare``."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.a, self.b = Replica(pair.a), Replica(pair.b)

    def start(self) -> None:
        """Bring both up and have them in step, without a first resync: both are blank (drbdadm-8.4(8))."""
        for side in (self.a, self.b):
            side.admin("up")
        self.a.wait("both to be connected", lambda status: status.connection == "Connected")
        self.a.host.succeed("drbdadm", "--", "--clear-bitmap", "new-current-uuid", NAME)
        self.wait_in_step()

    def wait_in_step(self, timeout_s: float = _SETTLE_S) -> None:
        """Wait until both sides say that both replicas are up to date. Raises ProductFailure."""
        for side in (self.a, self.b):
            side.wait("both replicas to be up to date", lambda status: status.in_step, timeout_s)
