"""Devices of one guest, attached and detached while it runs, and the states that xenstore has of both their ends.

``guest.devices``. What a device is like is ``guest_spec``'s business, what a guest does with it the suites'. Sources:
docs/man/xen-vbd-interface.7 (numbers of disks), xen/include/public/io/xenbus.h (states), tools/libs/light (the
nodes below /libxl, which say where each end is).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xentests.deadline import Deadline, until
from xentests.errors import ProductFailure, UsageError
from xentests.host.command import Result
from xentests.host.guest_spec import Disk, Nic
from xentests.host.xenstore import parse_ls
from xentests.text import tail

if TYPE_CHECKING:
    from xentests.host.guests import Guest

Class = Literal["vbd", "vif"]
STATES = ("unknown", "initialising", "init-wait", "initialised", "connected", "closing", "closed")
"""Of one end of a device, by number: enum xenbus_state. The two for reconfiguration are those of PCI alone."""

SETTLE_S = 20.0
"""Seconds (scaled) for two ends to connect or to go once the toolstack has done its part; 0.1 to 0.5 are usual."""
_XL_S = 60.0
_VDEV = re.compile(r"(xvd|hd|sd)([a-z])")


class DeviceFailure(ProductFailure):
    """A device did not connect, or did not go. The text holds the states of both its ends."""


@dataclass(frozen=True)
class Ends:
    """The states of a device's two ends as xenstore has them: words of ``STATES``, ``gone`` where there is no node."""

    front: str
    back: str

    @property
    def connected(self) -> bool:
        """Both ends are ready for use."""
        return self.front == self.back == "connected"

    @property
    def gone(self) -> bool:
        """xenstore has neither."""
        return self.front == self.back == "gone"

    @property
    def closed(self) -> bool:
        """Each is closed, or gone already: the guest has let go of the device, whatever the toolstack knows."""
        return {self.front, self.back} <= {"closed", "gone"}

    def __str__(self) -> str:
        return f"front end {self.front}, back end {self.back}"


def disk_number(vdev: str) -> int:
    """The number of a whole disk, such as 51712 for ``xvda``: docs/man/xen-vbd-interface.7, "Concrete encoding"."""
    match = _VDEV.fullmatch(vdev)
    if match is None:
        raise UsageError(f"disk {vdev!r}: whole disks are xvda to xvdz, sda to sdp and hda to hdd")
    disk = ord(match[2]) - ord("a")
    if match[1] == "xvd":
        return 202 << 8 | disk << 4 if disk < 16 else 1 << 28 | disk << 8
    if match[1] == "sd":
        return 8 << 8 | disk << 4
    return (3 << 8 | disk << 6) if disk < 2 else (22 << 8 | (disk - 2) << 6)


class Device:
    """One device of a guest; ``number`` is what xl and xenstore call it, ``what`` how it was asked for."""

    def __init__(self, guest: Guest, kind: Class, number: int, what: Disk | Nic) -> None:
        self.guest = guest
        self.kind = kind
        self.number = number
        self.what = what
        self.front = f"/local/domain/{guest.domid}/device/{kind}/{number}"
        self._record = f"/libxl/{guest.domid}/device/{kind}/{number}"
        self._back = ""

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number} of {self.guest!r}>"

    @property
    def name(self) -> str:
        """What the toolstack calls it: ``xvdb`` of a disk, ``vif3.0`` of an interface (dom0's own name for it)."""
        return self.what.vdev if isinstance(self.what, Disk) else f"vif{self.guest.domid}.{self.number}"

    @property
    def back(self) -> str:
        """The node of its back end: of another class than the front end's where a QEMU serves a disk (``qdisk``)."""
        if not self._back:
            self._back = self.guest.host.xenstore.read(f"{self._record}/backend")
        return self._back

    def ends(self) -> Ends:
        """The states of both ends, read at once."""
        result = self.guest.host.run("sh", "-c", _READ, "read", self.front, self._record, self._back)
        front, back, where = result.text.split("\n")
        self._back = where.removeprefix("in ").strip() or self._back
        return Ends(_state(front), _state(back))

    def wait_connected(self, timeout_s: float = SETTLE_S) -> Ends:
        """Wait until both ends are connected. Raises DeviceFailure, at once when an end says ``error``."""
        return self._wait("connected", timeout_s)

    def wait_gone(self, timeout_s: float = SETTLE_S) -> Ends:
        """Wait until xenstore has neither end any more. Raises DeviceFailure."""
        return self._wait("gone", timeout_s)

    def wait_closed(self, timeout_s: float = SETTLE_S) -> Ends:
        """Wait until the guest has let go of it: a toolstack that gave up before removes what is left when asked again.

        Raises DeviceFailure.
        """
        return self._wait("closed", timeout_s)

    def detach(self, *, timeout_s: float = _XL_S) -> None:
        """Have it detached by the toolstack, and wait until both ends are gone. Raises DeviceFailure, CommandFailed."""
        self.guest.host.succeed(*self._detaching(), timeout_s=timeout_s)
        self.wait_gone()

    def try_detach(self, *, force: bool = False, timeout_s: float = _XL_S) -> Result:
        """What xl says to its being detached, whatever that is."""
        return self.guest.host.run(*self._detaching(force=force), timeout_s=timeout_s)

    def _detaching(self, *, force: bool = False) -> tuple[str, ...]:
        options = ["--force"] if force else []
        command = "block-detach" if self.kind == "vbd" else "network-detach"
        named = self.what.vdev if isinstance(self.what, Disk) else str(self.number)
        return ("xl", command, *options, self.guest.name, named)

    def _wait(self, wish: Literal["connected", "closed", "gone"], timeout_s: float) -> Ends:
        deadline = Deadline(timeout_s)
        ends = Ends("gone", "gone")

        def look() -> bool:
            nonlocal ends
            ends = self.ends()
            return bool(getattr(ends, wish))

        until(look, what=wish, deadline=deadline, error=lambda _: self.failure(f"is not {wish}", ends, deadline))
        return ends

    def failure(self, what: str, ends: Ends | None = None, deadline: Deadline | None = None) -> DeviceFailure:
        """An error that says what this device did wrong, its states, and the guest's last words."""
        host, within = self.guest.host, f" within {deadline}" if deadline is not None else ""
        return DeviceFailure(
            f"{host.name}: {self.name} ({self.kind} {self.number}) of guest {self.guest.name} {what}{within}: "
            f"{ends or self.ends()}.\nIt was asked for as {self.what}; its nodes are {self.front} and "
            f"{self._back or '(none was made)'}. What its hotplug script wrote there and to {_LOG} in dom0, and the "
            "guest's QEMU to its log:\n"
            f"{tail(host.run('sh', '-c', _DOM0_SAID, 'said', self._back, self.guest.name).stdout) or '(nothing)'}\n"
            f"The guest's last words:\n{tail(self.guest.log.raw()) or '(none)'}\n"
            f"The whole console: {host.console.log}"
        )


_LOG = "/var/log/xen/xen-hotplug.log"
_DOM0_SAID = (
    f'xenstore-read "$1/hotplug-error" 2>/dev/null; tail -n 5 {_LOG} 2>/dev/null; '
    'tail -n 5 "/var/log/xen/qemu-dm-$2.log" 2>/dev/null'
)
_READ = """
back=$(xenstore-read "$2/backend" 2>/dev/null)
xenstore-read "$1/state" 2>/dev/null || echo gone
xenstore-read "${back:-$3}/state" 2>/dev/null || echo gone
echo "in $back"
"""


def _state(text: str) -> str:
    return STATES[int(text)] if text.isdecimal() and int(text) < len(STATES) else text


class Devices:
    """``guest.devices``: those it was made with, and those attached since."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def attach(self, what: Disk | Nic, *, timeout_s: float = _XL_S) -> Device:
        """Attach a disk or an interface, and wait until both its ends are connected.

        Raises CommandFailed when xl refuses, DeviceFailure when an end does not come.
        """
        self._guest.host.succeed(*self._attaching(what), timeout_s=timeout_s)
        device = self.find(what)
        device.wait_connected()
        return device

    def try_attach(self, what: Disk | Nic, *, timeout_s: float = _XL_S) -> Result:
        """What xl says to an attachment, whatever that is."""
        return self._guest.host.run(*self._attaching(what), timeout_s=timeout_s)

    def find(self, what: Disk | Nic) -> Device:
        """A device that the guest has already: a disk by its ``vdev``, an interface by its MAC."""
        if isinstance(what, Disk):
            return Device(self._guest, "vbd", disk_number(what.vdev), what)
        found = parse_ls(self._guest.host.run("xenstore-ls", "-f", self._folder("vif")).text)
        numbers = [path.split("/")[-2] for path, value in found.items() if path.endswith("/mac") and value == what.mac]
        if not numbers:
            raise DeviceFailure(f"{self._guest!r} has no interface with MAC {what.mac}: xenstore says {found}")
        return Device(self._guest, "vif", int(numbers[0]), what)

    def numbers(self, kind: Class) -> list[int]:
        """The numbers of all devices of a class, as the toolstack has them."""
        listed = self._guest.host.run("xenstore-list", f"/libxl/{self._guest.domid}/device/{kind}").text
        return sorted(int(word) for word in listed.split())

    def _attaching(self, what: Disk | Nic) -> tuple[str, ...]:
        if isinstance(what, Disk):
            return ("xl", "block-attach", self._guest.name, str(what))
        # Unlike a configuration file, this command wants each setting of an interface as a word of its own.
        return ("xl", "network-attach", self._guest.name, *str(what).split(","))

    def _folder(self, kind: Class) -> str:
        return f"/local/domain/{self._guest.domid}/device/{kind}"
