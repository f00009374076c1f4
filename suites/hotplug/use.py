"""How a guest uses its devices for real, and what has to agree after it: bytes, packets, work done.

Every one of these raises or returns something to be compared; none is content with a device's being there.
"""

from __future__ import annotations

from dataclasses import dataclass

from fixtures.hotplug import HOST_ADDRESS
from xentests.host.devices import Device
from xentests.host.guest_spec import Nic
from xentests.host.guests import Guest
from xentests.host.host import Host

SOME_TIMES = 2
"""How often a device comes and goes in a short run, where another kind of guest or back end has had it ``TIMES`` times.

A hotplug script of Xen's takes 1.4 s in an emulated dom0: everything with everything so often takes half an hour.
"""
SIZE = 256 << 10

_WRITE = (
    "dd if=/dev/urandom of=/tmp/data bs=64k count=4 2>/dev/null && sha256sum < /tmp/data && "
    "dd if=/tmp/data of=/dev/{0} bs=64k conv=fsync 2>/dev/null && echo 3 > /proc/sys/vm/drop_caches"
)
_READ = "dd if=/dev/{0} bs=64k count=4 2>/dev/null | sha256sum"


def write_anew(disk: Device) -> str:
    """The guest writes ``SIZE`` random bytes at the start of a disk and forgets them; their checksum.

    Its page cache is dropped, so that reading them goes to the disk.
    """
    return disk.guest.succeed(_WRITE.format(disk.name)).split()[0]


def read_back(disk: Device) -> str:
    """The checksum of the first ``SIZE`` bytes of a disk, as the guest reads it from there."""
    return disk.guest.succeed(_READ.format(disk.name)).split()[0]


def dom0_reads(host: Host, path: str) -> str:
    """The checksum of the first ``SIZE`` bytes of a file or block device of dom0."""
    return host.succeed("sh", "-c", f'head -c {SIZE} "$1" | sha256sum', "read", path).text.split()[0]


def write_and_verify(disk: Device) -> str:
    """The guest writes and reads back; the checksum. AssertionError when it reads something else."""
    written = write_anew(disk)
    found = read_back(disk)
    assert found == written, f"{disk.name} of {disk.guest.name}: wrote {written[:16]}..., read {found[:16]}..."
    return written


def renew(disk: Device) -> tuple[int, str, str]:
    """The guest reads a disk, writes it anew, forgets that and reads it again, in one command.

    The disk's size in bytes, the checksum of what was there before, and of what is there now. AssertionError when it
    read something else than it wrote.
    """
    read = _READ.format(disk.name)
    words = disk.guest.succeed(f"cat /sys/block/{disk.name}/size; {read}; {_WRITE.format(disk.name)} && {read}").split()
    size, found, written, again = words[0], *words[1::2]
    assert again == written, f"{disk.name} of {disk.guest.name}: wrote {written[:16]}..., read {again[:16]}..."
    return int(size) * 512, found, written


def loses(guest: Guest, path: str) -> None:
    """Wait until the guest has such a file no more. Linux forgets a device a moment after xenstore has."""
    guest.wait_for(f"test -e {path}; echo $?", "1")


@dataclass(frozen=True)
class Pings:
    """What a row of pings came to: ``sent`` and ``answered`` as the guest counts them, and what dom0's end of the
    interface counted meanwhile in both directions."""

    sent: int
    answered: int
    from_guest: int
    to_guest: int


def interface(nic: Device) -> str:
    """The name that the guest has given an interface, found by its MAC."""
    assert isinstance(nic.what, Nic)
    found = nic.guest.succeed(f"grep -l {nic.what.mac} /sys/class/net/*/address")
    return found.split("/")[4]


def bring_up(nic: Device, address: str) -> str:
    """The guest configures an interface; its name there."""
    name = interface(nic)
    nic.guest.succeed(f"ip link set {name} up && ip addr add {address}/24 dev {name}")
    return name


def counters(nic: Device) -> tuple[int, int]:
    """Packets from and to the guest, as dom0's end of an interface has counted them."""
    folder = f"/sys/class/net/{nic.name}/statistics"
    text = nic.guest.host.succeed("cat", f"{folder}/rx_packets", f"{folder}/tx_packets").text
    received, sent = (int(word) for word in text.split())
    return received, sent


def ping(nic: Device, *, count: int = 10, address: str = HOST_ADDRESS) -> Pings:
    """The guest pings an address over an interface that is up."""
    before = counters(nic)
    # -W: how long the last one may take; busybox counts itself how many came back.
    answer = nic.guest.run(f"ping -c {count} -i 0.05 -W 2 {address} | grep transmitted", timeout_s=60)
    words = answer.text.split()
    after = counters(nic)
    return Pings(int(words[0]), int(words[3]), after[0] - before[0], after[1] - before[1])


def ping_and_verify(nic: Device, *, count: int = 10, address: str = HOST_ADDRESS) -> None:
    """Every ping is answered, and dom0 has counted each of them both ways (and what the kernels say besides)."""
    seen = ping(nic, count=count, address=address)
    assert (seen.sent, seen.answered) == (count, count), f"{nic.name} of {nic.guest.name}: {seen}"
    assert seen.from_guest >= count, f"{nic.name} of {nic.guest.name}: {seen}"
    assert seen.to_guest >= count, f"{nic.name} of {nic.guest.name}: {seen}"
