"""Two hosts on one cable: who each of them is, said inside their dom0s, and whether they reach each other.

Clones of one template have the same MAC, name and address, since all these are state that was frozen: they are set
once the clones run. The cable itself is ``xentests.lab.link``'s; here it is something that can be cut and mended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xentests.deadline import until
from xentests.errors import ProductFailure

if TYPE_CHECKING:
    from xentests.host.host import Host

REACH_S = 20.0
# Frames as large as the cable takes: a frame costs two emulated machines the same whatever its size, and a migration
# whose bytes come in frames of 1500 takes four times as long.
# $1: MAC, $2: address, $3: name, $4: lines of /etc/hosts. dom0 has no other interface on virtio. Few processes: each
# costs an emulated clone, which has everything yet to translate, some 30 ms.
_IDENTIFY = """
set -e
[ -e /sys/module/virtio_net ] || modprobe virtio_net
set -- "$@" /sys/bus/virtio/drivers/virtio_net/virtio*/net/*
name=${5##*/}
[ -e "/sys/class/net/$name" ] || { echo "there is no interface on virtio" >&2; exit 1; }
ip -batch - << EOF
link set $name address $1 mtu 65000
addr add $2/24 dev $name
link set $name up
EOF
echo "$3" > /proc/sys/kernel/hostname
printf '127.0.0.1 localhost\\n%s' "$4" > /etc/hosts
"""


class Cable(Protocol):
    """What joins the hosts: ``xentests.lab.link.Link``."""

    def cut(self) -> None:
        """Frames are lost from now on."""

    def mend(self) -> None:
        """Frames arrive again."""


@dataclass(frozen=True)
class Identity:
    """Who the host of a number is; numbers begin with 1."""

    number: int

    @property
    def name(self) -> str:
        """Its host name."""
        return f"xen{self.number}"

    @property
    def address(self) -> str:
        """Its IPv4 address; the network has 24 bits."""
        return f"10.1.0.{self.number}"

    @property
    def mac(self) -> str:
        """Its interface's address, a locally administered one."""
        return f"02:78:65:6e:00:{self.number:02x}"


@dataclass(frozen=True)
class Pair:
    """Two hosts that are joined: ``a`` is number 1, ``b`` number 2. ``cable`` can be cut and mended."""

    a: Host
    b: Host
    cable: Cable

    @property
    def sides(self) -> tuple[tuple[Host, Identity], ...]:
        """Both hosts, each with who it is."""
        return (self.a, Identity(1)), (self.b, Identity(2))

    def introduce(self) -> None:
        """Give each host its identity, and wait until they reach each other. Raises CommandFailed, ProductFailure."""
        names = "".join(f"{identity.address} {identity.name}\n" for _, identity in self.sides)
        for host, identity in self.sides:
            host.succeed("sh", "-c", _IDENTIFY, "identify", identity.mac, identity.address, identity.name, names)
        self.wait_reached()

    def reached(self) -> bool:
        """Whether a packet goes from ``a`` to ``b`` and back, within a second."""
        return self.a.run("busybox", "ping", "-c", 1, "-W", 1, Identity(2).address).exit_code == 0

    def wait_reached(self, timeout_s: float = REACH_S) -> None:
        """Wait until the hosts reach each other. Raises ProductFailure."""
        what = f"{self.a.name} to reach {self.b.name} by their link"
        until(self.reached, what=what, deadline=timeout_s, error=ProductFailure)
