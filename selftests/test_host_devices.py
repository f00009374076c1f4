"""Devices of guests: their numbers, the states of both ends as xenstore has them, and what is said when one fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fakes import FakeDomain, FakeImage
from xentests.errors import CommandFailed, UsageError
from xentests.host.devices import DeviceFailure, Ends, disk_number
from xentests.host.guest_log import GuestLog
from xentests.host.guest_spec import Disk, GuestSpec, Nic
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.host.qcow2 import empty_qcow2

DISK = Disk("/disk", vdev="xvdb")


class Store:
    """Plays xl and xenstore: ``states`` of the front and the back end, and where the back end is."""

    def __init__(self) -> None:
        self.states = ["gone", "gone"]
        self.back = ""
        self.xl: list[list[str]] = []
        self.exit_code = 0

    def __call__(self, argv: list[str]) -> tuple[int, bytes] | None:
        if argv[0] == "xl":
            self.xl.append(argv)
            return self.exit_code, b""
        if argv[0] == "xenstore-ls":
            return 0, b'/local/domain/3/device/vif/2/mac = "00:16:3e:00:00:01"\n'
        if argv[0] == "sh" and "hotplug-error" in argv[2]:
            return 0, b"/disk does not exist."
        return (0, "\n".join([*self.states, f"in {self.back}\n"]).encode()) if argv[0] == "sh" else None


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def guest(tmp_path: Path, store: Store) -> Iterator[Guest]:
    domain = FakeDomain(tmp_path)
    domain.on_program = store
    host = Host(domain, FakeImage())
    guest = Guest(host, GuestSpec(), GuestLog("guest", host.files, host.console))
    guest.domid = 3
    yield guest
    host.close()


def test_numbers_of_disks() -> None:
    """docs/man/xen-vbd-interface.7, "Concrete encoding in the VBD interface"."""
    names = ("xvda", "xvdb", "xvdp", "xvdq", "sda", "hda", "hdb", "hdc", "hdd")
    assert [disk_number(name) for name in names] == [
        51712, 51728, 51952, 268439552, 2048, 768, 832, 5632, 5696
    ]  # fmt: skip
    with pytest.raises(UsageError, match="xvda to xvdz"):
        disk_number("xvda1")


def test_both_ends(guest: Guest, store: Store) -> None:
    """An attached disk is connected when both ends are, and is asked about where the toolstack has its back end."""
    store.states, store.back = ["4", "4"], "/local/domain/0/backend/qdisk/3/51728"
    device = guest.devices.attach(DISK)
    assert store.xl == [["xl", "block-attach", "guest", str(DISK)]]
    assert device.ends() == Ends("connected", "connected")
    assert device.back == store.back
    store.states, store.back = ["gone", "gone"], ""
    device.detach()
    assert store.xl[1:] == [["xl", "block-detach", "guest", "xvdb"]]


def test_one_end_does_not_come(guest: Guest, store: Store) -> None:
    """The error says host, device, guest, both states, the time, and what the script had to say."""
    store.states, store.back = ["3", "2"], "/local/domain/0/backend/vbd/3/51728"
    device = guest.devices.find(DISK)
    with pytest.raises(DeviceFailure) as caught:
        device.wait_connected(0.1)
    said = str(caught.value)
    assert said.startswith("fake: xvdb (vbd 51728) of guest guest is not connected within 0.1 s of 0.1 s: ")
    assert "front end initialised, back end init-wait" in said
    assert "/local/domain/0/backend/vbd/3/51728" in said
    assert "/disk does not exist." in said
    assert "console.log" in said


def test_one_end_does_not_go(guest: Guest, store: Store) -> None:
    """The same for a device that stays, although xl said it was gone."""
    store.states = ["gone", "5"]
    with pytest.raises(DeviceFailure, match=r"is not gone within .*front end gone, back end closing"):
        guest.devices.find(DISK).wait_gone(0.1)


def test_interface_is_found_by_its_mac(guest: Guest, store: Store) -> None:
    """xl numbers interfaces itself, and wants each of their settings as a word."""
    store.states = ["4", "4"]
    nic = guest.devices.attach(Nic(bridge="xenbr0"))
    assert store.xl == [["xl", "network-attach", "guest", "mac=00:16:3e:00:00:01", "bridge=xenbr0"]]
    assert (nic.number, nic.name) == (2, "vif3.2")
    with pytest.raises(DeviceFailure, match="no interface with MAC 00:16:3e:00:00:09"):
        guest.devices.find(Nic(mac="00:16:3e:00:00:09"))


def test_what_xl_refuses(guest: Guest, store: Store) -> None:
    """A refusal is raised, or is the answer where it is asked for."""
    store.exit_code = 1
    with pytest.raises(CommandFailed):
        guest.devices.attach(DISK)
    assert guest.devices.try_attach(DISK).exit_code == 1
    assert guest.devices.find(DISK).try_detach(force=True).argv == ("xl", "block-detach", "--force", "guest", "xvdb")


def test_empty_qcow2() -> None:
    """Its header says what QEMU wants to know: magic, version 2, clusters of 4 KiB, size."""
    image = empty_qcow2(8)
    assert len(image) == 4 * 4096
    assert image[:8] == b"QFI\xfb\0\0\0\2"
    assert int.from_bytes(image[20:24], "big") == 12
    assert int.from_bytes(image[24:32], "big") == 8 << 20
