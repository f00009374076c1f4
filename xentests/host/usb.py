"""USB of guests: sticks that dom0 has, controllers and devices by ``xl``, and what a guest itself sees of them.

The sticks are those of the machine (``Machine.usb_sticks``), known by their serial numbers. Commands and the form of
``usb-list`` are those of docs/man/xl.1, "USB PASS-THROUGH", and tools/xl/xl_usb.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from xentests.deadline import until
from xentests.errors import ProductFailure, UsageError, XentestsError
from xentests.host.guests import Guest
from xentests.host.xl import XlError

if TYPE_CHECKING:
    from xentests.host.host import Host

DOM0_MODULES = ("ehci-pci", "usb-storage", "sd_mod")

_DEVICES = "/sys/bus/usb/devices"
_CONTROLLER = re.compile(
    r"^(?P<devid>\d+) +(?P<type>\S+) +(?P<backend>\d+) +(?P<state>\d+) +(?P<version>\d+) +(?P<ports>\d+) *$"
)
_PORT = re.compile(r"^  Port (?P<port>\d+):(?: Bus (?P<bus>\d+) Device (?P<address>\d+))?$")
_SETTLED_S = 30.0
"""Seconds (scaled) for a stick to turn up: 1 to 3 on an idle lab."""
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """A USB device by dom0's numbers of its bus and its device. ``port``: where it is, such as ``1-2``, if known."""

    bus: int
    address: int
    port: str = field(default="", compare=False)


@dataclass(frozen=True)
class Controller:
    """A controller of ``xl usb-list``. ``devices``: by port, those that are plugged into it. ``state``: xenbus's."""

    devid: int
    type: str
    backend: int
    state: int
    version: int
    ports: int
    devices: Mapping[int, Address]


def parse_usb_list(text: str) -> list[Controller]:
    """What ``xl usb-list`` says. Raises XlError."""
    found: list[tuple[dict[str, str], dict[int, Address]]] = []
    for line in text.splitlines():
        if match := _CONTROLLER.match(line):
            found.append((match.groupdict(), {}))
        elif (match := _PORT.match(line)) and found:
            if match["bus"]:
                found[-1][1][int(match["port"])] = Address(int(match["bus"]), int(match["address"]))
        elif not line.startswith("Devid"):
            raise XlError(f"`xl usb-list`: not a controller and not a port: {line!r}")
    return [
        Controller(
            int(words["devid"]),
            words["type"],
            int(words["backend"]),
            int(words["state"]),
            int(words["version"]),
            int(words["ports"]),
            devices,
        )
        for words, devices in found
    ]


class Dom0Usb:
    """The USB devices of dom0."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self, sticks: int) -> None:
        """Have dom0 find its controller and the disks of all its sticks."""
        self._host.succeed("modprobe", "-a", *DOM0_MODULES)
        for number in range(sticks):
            self.wait_disk(f"stick{number}")

    def find(self, serial: str) -> Address:
        """The device with that serial number."""
        folder = self._folder(serial)
        if folder is None:
            raise UsageError(f"{self._host.name}: dom0 has no USB device {serial}: ask for a machine with usb_sticks")
        bus, address = self._host.succeed("cat", f"{folder}/busnum", f"{folder}/devnum").text.split()
        return Address(int(bus), int(address), folder.rpartition("/")[2])

    def disk(self, serial: str) -> str:
        """The name that dom0's kernel has for its disk, such as ``sda``; "" while it has none."""
        folder = self._folder(serial)
        found = self._host.run("sh", "-c", f"ls -d {folder}/*/host*/target*/*/block/*") if folder else None
        return found.text.strip().rpartition("/")[2] if found else ""

    def wait_disk(self, serial: str) -> str:
        """The path of its disk, once dom0's own driver has it. Raises ProductFailure."""
        name = until(
            lambda: self.disk(serial),
            what=f"{self._host.name}: a disk of dom0 for {serial}",
            deadline=_SETTLED_S,
            error=ProductFailure,
        )
        return f"/dev/{name}"

    def _folder(self, serial: str) -> str | None:
        found = self._host.run("sh", "-c", f"grep -lx {serial} {_DEVICES}/*/serial").text.strip()
        return found.removesuffix("/serial") if found else None


class GuestUsb:
    """The USB of one guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._host = guest.host

    def load_drivers(self) -> None:
        """Have the guest load all drivers it may need, and its kernel talk no more on the console that we ask it on."""
        load = "dmesg -n 1; while read -r module; do insmod /modules/$module; done < /modules/more; true"
        self.guest.succeed(load, timeout_s=60)

    def controllers(self) -> list[Controller]:
        """``xl usb-list``."""
        return parse_usb_list(self._host.succeed("xl", "usb-list", self.guest.name).text)

    def folder(self, controller: Controller) -> str:
        """Where xenstore has what is plugged into a controller: at its back end, or at libxl's own if it has none."""
        folder = f"/libxl/{self.guest.domid}/device/vusb/{controller.devid}"
        return folder if controller.type == "devicemodel" else self._host.xenstore.read(f"{folder}/backend")

    def add_controller(self, *words: str) -> Controller:
        """``xl usbctrl-attach`` with words such as ``version=2``; what ``xl usb-list`` then has more."""
        before = {controller.devid for controller in self.controllers()}
        self.guest.xl("usbctrl-attach", *words)
        added = [controller for controller in self.controllers() if controller.devid not in before]
        if len(added) != 1:
            raise ProductFailure(f"`xl usbctrl-attach {' '.join(words)}` added {added} to `xl usb-list`, not one")
        return added[0]

    def qemu_died(self) -> str:
        """What the guest's QEMU said last if it has ended; "" while it runs."""
        pid = self._host.xenstore.read(f"/local/domain/{self.guest.domid}/image/device-model-pid")
        if self._host.run("test", "-d", f"/proc/{pid}").exit_code == 0:
            return ""
        return self._host.run("tail", "-n", "1", f"/var/log/xen/qemu-dm-{self.guest.name}.log").text or "nothing"

    def remove_controller(self, controller: Controller) -> None:
        """``xl usbctrl-detach``."""
        self.guest.xl("usbctrl-detach", controller.devid)

    def plug(self, device: Address, *words: str) -> None:
        """``xl usbdev-attach``, with words such as ``controller=0`` and ``port=1``."""
        self.guest.xl("usbdev-attach", f"hostbus={device.bus}", f"hostaddr={device.address}", *words)

    def unplug(self, controller: Controller, port: int) -> None:
        """``xl usbdev-detach``."""
        self.guest.xl("usbdev-detach", controller.devid, port)

    def root_hubs(self) -> int:
        """How many controllers the guest sees."""
        return int(self.guest.succeed(f"ls -d {_DEVICES}/usb* 2> /dev/null | wc -l"))

    def wait_root_hubs(self, wanted: Callable[[int], bool]) -> None:
        """Wait until the guest sees as many controllers as wanted. Raises GuestFailure."""
        self._until(lambda: wanted(self.root_hubs()), "to see another number of controllers")

    def disk(self, serial: str) -> str:
        """The path that the guest has for a stick's disk; "" while it has none."""
        find = f"ls -d $(grep -lx {serial} {_DEVICES}/*/serial | sed s,serial$,,)*/host*/target*/*/block/* 2> /dev/null"
        found = self.guest.run(find).text.strip().rpartition("/")[2]
        return f"/dev/{found}" if found else ""

    def wait_disk(self, serial: str) -> str:
        """The path of a stick's disk, once the guest has it. Raises GuestFailure."""
        return self._until(lambda: self.disk(serial), f"to have a disk of {serial}")

    def wait_no_disk(self, serial: str) -> None:
        """Wait until the guest has lost a stick. Raises GuestFailure."""
        self._until(lambda: not self.disk(serial), f"to have lost {serial}")

    def _until(self, look: Callable[[], T], what: str) -> T:
        def late(message: str) -> XentestsError:
            said = self.guest.run("dmesg | tail -n 12").text
            return self.guest.log.failure(
                f"{message}; `xl usb-list`: {self.controllers()}; the guest's kernel:\n{said}"
            )

        return until(look, what=f"guest {self.guest.name} {what}", deadline=_SETTLED_S, error=late, every_s=0.1)
