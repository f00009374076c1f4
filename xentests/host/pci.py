"""PCI devices of dom0 that are handed to guests by ``xl``: the emulated NICs of the machine, known by their numbers.

Those NICs (``Machine.pci_nics``) share one Ethernet, so that a guest with one of them and dom0 with another can talk;
dom0's is in a network namespace of its own, or what dom0 sends itself would never leave it. Commands and the form of
``pci-list`` are those of docs/man/xl.1, "PCI PASS-THROUGH", and tools/xl/xl_pci.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from xentests.deadline import until
from xentests.errors import ProductFailure, XentestsError
from xentests.host.command import Result
from xentests.host.guests import Guest
from xentests.host.xl import XlError
from xentests.lab.machine import PCI_NIC_SLOT, nic_mac

if TYPE_CHECKING:
    from xentests.host.host import Host

VENDOR_AND_DEVICE = "0x8086 0x100e"
"""Of Intel's 82540EM, which QEMU emulates."""
DOM0_MODULES = ("e1000", "xen-pciback")
PEER = "peer"
"""The name space that dom0's own NIC is in."""

_DEVICES = "/sys/bus/pci/devices"
_LINE = re.compile(r"^(?P<slot>[0-9a-f]{2}\.[0-7]) +(?P<bdf>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) *$")
_SETTLED_S = 30.0
"""Seconds (scaled) for a driver to have a card: 1 to 4 on an idle lab."""
T = TypeVar("T")


def nic(number: int) -> str:
    """Where an emulated NIC is, as domain, bus, device and function."""
    return f"0000:00:{PCI_NIC_SLOT + number:02x}.0"


def parse_pci_list(text: str) -> dict[str, str]:
    """What ``xl pci-list`` says: where dom0 has a device -> the slot in which the guest has it. Raises XlError."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            found[match["bdf"]] = match["slot"]
        elif line.split() != ["Vdev", "Device"]:
            raise XlError(f"`xl pci-list`: not a device: {line!r}")
    return found


@dataclass(frozen=True)
class Packets:
    """What a card has counted, by its own registers."""

    received: int
    sent: int


class Dom0Pci:
    """The PCI devices of dom0."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self, *, peer: int, address: str) -> None:
        """Load drivers, and put the NIC ``peer`` into the name space ``PEER`` with an IPv4 address."""
        host = self._host
        host.succeed("modprobe", "-a", *DOM0_MODULES)
        name = self.wait_interface(peer)
        for words in (
            ("netns", "add", PEER),
            ("link", "set", name, "netns", PEER),
            ("-n", PEER, "link", "set", name, "up"),
            ("-n", PEER, "addr", "add", f"{address}/24", "dev", name),
        ):
            host.succeed("ip", *words)

    def in_peer(self, *words: str, timeout_s: float = 30.0) -> Result:
        """Run a program where dom0's own NIC is; it must work."""
        return self._host.succeed("ip", "netns", "exec", PEER, *words, timeout_s=timeout_s)

    def peer_packets(self, number: int) -> Packets:
        """What the NIC in the name space has counted."""
        find = _COUNTED.format(nic_mac(number))
        return _packets(self.in_peer("sh", "-c", find).text)

    def assignable(self) -> list[str]:
        """``xl pci-assignable-list``."""
        return self._host.succeed("xl", "pci-assignable-list").text.split()

    def driver(self, bdf: str) -> str:
        """The driver that dom0's kernel has on a device; "" for none."""
        found = self._host.run("readlink", f"{_DEVICES}/{bdf}/driver")
        return found.text.strip().rpartition("/")[2]

    def wait_interface(self, number: int) -> str:
        """The name of a NIC, once dom0's own driver has it. Raises ProductFailure."""

        def look() -> str:
            found = self._host.run("sh", "-c", f"ls {_DEVICES}/{nic(number)}/net")
            return found.text.strip() if found.exit_code == 0 else ""

        return until(
            look,
            what=f"{self._host.name}: an interface of dom0 for {nic(number)}",
            deadline=_SETTLED_S,
            error=ProductFailure,
        )


class GuestPci:
    """The PCI devices of one guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._host = guest.host

    def load_drivers(self) -> None:
        """Have the guest load the front end and the NIC's driver, and its kernel be silent on the console we use."""
        self.guest.succeed("dmesg -n 1")
        # An HVM guest has no use for the front end, which then does not load.
        self.guest.run("for module in $(grep -e pcifront -e e1000 /modules/more); do insmod /modules/$module; done")

    def listed(self) -> Mapping[str, str]:
        """``xl pci-list``: where dom0 has a device -> the slot in which the guest has it."""
        return parse_pci_list(self._host.succeed("xl", "pci-list", self.guest.name).text)

    def in_xenstore(self) -> list[str]:
        """The devices at the guest's back end, as xenstore has them."""
        folder = f"/local/domain/0/backend/pci/{self.guest.domid}/0"
        if not self._host.xenstore.exists(folder):
            return []
        nodes = self._host.xenstore.ls(folder)
        return sorted(value for path, value in nodes.items() if path.rpartition("/")[2].startswith("dev-"))

    def attach(self, bdf: str) -> None:
        """``xl pci-attach``, which must work."""
        self.guest.xl("pci-attach", bdf)

    def detach(self, bdf: str) -> None:
        """``xl pci-detach``, which must work."""
        self.guest.xl("pci-detach", bdf)

    def devices(self, what: str = VENDOR_AND_DEVICE) -> int:
        """How many devices of that vendor and model the guest's kernel has found."""
        look = f"for each in {_DEVICES}/*; do echo $(cat $each/vendor $each/device 2> /dev/null); done"
        return self.guest.run(look).text.splitlines().count(what)

    def wait_devices(self, number: int) -> None:
        """Wait until the guest has so many of the machine's NICs. Raises GuestFailure."""
        self._until(lambda: self.devices() == number, f"to have {number} such devices")

    def wait_interface(self, number: int) -> str:
        """The name that the guest has for a NIC, once a driver has it. Raises GuestFailure."""
        find = f"grep -l {nic_mac(number)} /sys/class/net/*/address"

        def look() -> str:
            found = self.guest.run(find)
            return found.text.strip().split("/")[4] if found.exit_code == 0 else ""

        return self._until(look, f"to have an interface for {nic(number)}")

    def bring_up(self, number: int, address: str) -> str:
        """Give a NIC an IPv4 address; its name in the guest."""
        name = self.wait_interface(number)
        self.guest.succeed(f"ip link set {name} up && ip addr add {address}/24 dev {name}")
        self.guest.wait_for(f"cat /sys/class/net/{name}/carrier", "1")
        return name

    def packets(self, number: int) -> Packets:
        """What a NIC of the guest has counted."""
        return _packets(self.guest.succeed(_COUNTED.format(nic_mac(number))))

    def _until(self, look: Callable[[], T], what: str) -> T:
        def late(message: str) -> XentestsError:
            said = self.guest.run("dmesg | tail -n 12").text
            return self.guest.log.failure(f"{message}; `xl pci-list`: {self.listed()}; the guest's kernel:\n{said}")

        return until(look, what=f"guest {self.guest.name} {what}", deadline=_SETTLED_S, error=late, every_s=0.1)


_COUNTED = "cd $(dirname $(grep -l {0} /sys/class/net/*/address))/statistics && cat rx_packets tx_packets"


def _packets(text: str) -> Packets:
    received, sent = (int(word) for word in text.split())
    return Packets(received, sent)
