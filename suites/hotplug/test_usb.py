"""USB devices of dom0 come to guests and go again while these run: by the device model, and by PVUSB.

The devices are sticks of the machine; what a guest writes is read again where the stick turns up next.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest

from fixtures.guests import with_guest
from fixtures.hotplug import Rounds
from suites.hotplug.use import SOME_TIMES
from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.guest_spec import Disk, GuestSpec
from xentests.host.host import Host
from xentests.host.usb import Controller, Dom0Usb, GuestUsb
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts, Prepared

pytestmark = pytest.mark.needs("usb-devices")

STICKS = 2
KIB = 128
CONNECTED = 4
"""XenbusStateConnected of xen/include/public/io/xenbus.h."""
DIES = "Device 'xen-backend' does not support hotplugging"
"""QEMU 10.0 makes these devices non-hotpluggable, and takes a back end that appears after its start for hotplugged."""
SEGV = signal.SIGSEGV.value


@dataclass(frozen=True)
class Way:
    """How a device reaches a guest: the guest, and a controller as ``xl usbctrl-attach`` takes it."""

    guest: GuestSpec
    type: str
    version: int
    ports: int

    @property
    def words(self) -> tuple[str, ...]:
        """The controller, for ``xl usbctrl-attach``."""
        return f"type={self.type}", f"version={self.version}", f"ports={self.ports}"


HVM = GuestSpec(kind="hvm", memory_mib=160)
# libxl starts the QEMU that is the back end only with a guest that needs one from the beginning, such as for a disk.
QDISK = "/var/tmp/qdisk.img"
QUSB = GuestSpec(kind="pv", disks=(Disk(QDISK, vdev="xvdz", backend="qdisk"),))
PV = GuestSpec(kind="pv")
LONG = [pytest.mark.needs("hvm-guests"), pytest.mark.long]
WAYS = (
    pytest.param(Way(HVM, "devicemodel", 1, 2), id="hvm-uhci", marks=LONG),
    pytest.param(Way(HVM, "devicemodel", 2, 6), id="hvm-ehci", marks=pytest.mark.needs("hvm-guests")),
    pytest.param(Way(HVM, "devicemodel", 3, 15), id="hvm-xhci", marks=LONG),
    pytest.param(Way(QUSB, "qusb", 2, 4), id="pv-qusb", marks=pytest.mark.needs("pv", "pvusb-frontend")),
    pytest.param(
        Way(PV, "pv", 2, 4), id="pv-kernel", marks=pytest.mark.needs("pv", "pvusb-frontend", "pvusb-kernel-backend")
    ),
)


def with_usb_guest(spec: GuestSpec) -> Prepared:
    """Hosts whose dom0 has its sticks, on which a guest with drivers for USB has been running."""

    def before(host: Host) -> None:
        Dom0Usb(host).start(STICKS)
        host.succeed("truncate", "-s", "1M", QDISK)

    return with_guest(spec, key="usb", before=before, settle=lambda guest: GuestUsb(guest).load_drivers())


@pytest.fixture
def usb(hosts: Hosts, one_cpu: Machine, way: Way) -> GuestUsb:
    """The USB of a guest that has been running all along, on a host with sticks."""
    host = hosts.pristine(machine=one_cpu.with_(usb_sticks=STICKS), prepared=with_usb_guest(way.guest))
    return GuestUsb(host.guests.made[way.guest.name])


def attach_controller(usb: GuestUsb, way: Way) -> Controller:
    """``xl usbctrl-attach``, and wait until a back end outside of the guest's own QEMU machine is connected."""
    controller = usb.add_controller(*way.words)
    if way.type != "devicemodel":
        state = until(
            lambda: usb.qemu_died() or usb.controllers()[-1].state == CONNECTED,
            what=f"a connection of {way.words}",
            deadline=20.0,
            error=ProductFailure,
        )
        if DIES in str(state):
            pytest.xfail("QEMU ends when a qusb controller appears: its legacy Xen back ends cannot be hotplugged")
        assert state is True
    return controller


@pytest.mark.parametrize("way", WAYS)
def test_controller_comes_and_goes(usb: GuestUsb, way: Way) -> None:
    """A controller that is attached is in usb-list and in the guest; detached, in neither.

    docs/man/xl.1, "usbctrl-attach", "usbctrl-detach" and "usb-list".
    """
    before, hubs = usb.controllers(), usb.root_hubs()
    controller = attach_controller(usb, way)
    assert (controller.type, controller.version, controller.ports) == (way.type, way.version, way.ports)
    assert not controller.devices
    usb.wait_root_hubs(lambda seen: seen > hubs)
    usb.remove_controller(controller)
    assert usb.controllers() == before
    usb.wait_root_hubs(lambda seen: seen == hubs)


@pytest.mark.parametrize("way", WAYS)
def test_data_through_a_stick(usb: GuestUsb, way: Way) -> None:
    """What a guest writes to a stick it reads again, and so does dom0 when it has the stick back.

    docs/man/xl.1, "usbdev-attach" and "usbdev-detach".
    """
    guest, dom0 = usb.guest, Dom0Usb(usb.guest.host)
    controller, stick = attach_controller(usb, way), dom0.find("stick0")
    usb.plug(stick, f"controller={controller.devid}", "port=1")
    disk = usb.wait_disk("stick0")
    assert usb.controllers()[-1].devices == {1: stick}
    assert not dom0.disk("stick0")
    written = guest.succeed(f"dd if=/dev/urandom of=/tmp/data bs=1k count={KIB} 2> /dev/null; md5sum < /tmp/data")
    guest.succeed(f"dd if=/tmp/data of={disk} bs=64k conv=fsync && echo 3 > /proc/sys/vm/drop_caches", timeout_s=60)
    assert guest.succeed(f"head -c {KIB}k {disk} | md5sum", timeout_s=60) == written
    usb.unplug(controller, 1)
    usb.wait_no_disk("stick0")
    assert usb.controllers()[-1].devices == {}
    read = guest.host.succeed("sh", "-c", f"head -c {KIB}K {dom0.wait_disk('stick0')} | md5sum").text
    assert read.strip() == written


ONE_EACH = [way for way in WAYS if way.id in ("hvm-ehci", "pv-qusb", "pv-kernel")]


@pytest.mark.long
@pytest.mark.parametrize("way", ONE_EACH)
def test_rounds(usb: GuestUsb, way: Way, rounds: Rounds) -> None:
    """Plugged in and pulled out again and again, the guest sees a stick each time, and nothing is left in dom0.

    docs/man/xl.1, "usbdev-attach" and "usbdev-detach".
    """
    host, dom0 = usb.guest.host, Dom0Usb(usb.guest.host)
    controller = attach_controller(usb, way)
    usb.wait_no_disk("stick0")
    before = host.leaks.snapshot()
    for _ in range(rounds(SOME_TIMES)):
        usb.plug(dom0.find("stick0"), f"controller={controller.devid}", "port=1")
        usb.wait_disk("stick0")
        usb.unplug(controller, 1)
        usb.wait_no_disk("stick0")
    dom0.wait_disk("stick0")
    host.leaks.check(before)


@pytest.mark.long
@pytest.mark.parametrize("way", ONE_EACH)
def test_two_devices(usb: GuestUsb, way: Way) -> None:
    """Two sticks on one controller are told apart: by usb-list, by xenstore, and by the guest.

    docs/man/xl.1, "usbdev-attach": without a port, the first one that is free is taken.
    """
    dom0 = Dom0Usb(usb.guest.host)
    controller = attach_controller(usb, way)
    sticks = [dom0.find("stick0"), dom0.find("stick1")]
    for stick in sticks:
        usb.plug(stick, f"controller={controller.devid}")
    assert usb.wait_disk("stick0") != usb.wait_disk("stick1")
    assert usb.controllers()[-1].devices == dict(enumerate(sticks, 1))
    ports = usb.guest.host.xenstore.ls(f"{usb.folder(controller)}/port")
    assert [ports[path] for path in sorted(ports)][:2] == [stick.port for stick in sticks]


@pytest.mark.parametrize("way", ONE_EACH)
def test_device_is_given_once(usb: GuestUsb, way: Way) -> None:
    """A device that a guest has is not given a second time, and the guest keeps it.

    docs/man/xl.1, "usbdev-attach"; libxl_usb.c: "USB device already attached to a domain".
    """
    controller, stick = attach_controller(usb, way), Dom0Usb(usb.guest.host).find("stick0")
    usb.plug(stick, f"controller={controller.devid}", "port=1")
    words = (f"hostbus={stick.bus}", f"hostaddr={stick.address}", f"controller={controller.devid}", "port=2")
    refused = usb.guest.host.fail("xl", "usbdev-attach", usb.guest.name, *words)
    assert "already attached to a domain" in refused.stderr.decode()
    assert usb.wait_disk("stick0")
    assert usb.controllers()[-1].devices == {1: stick}


@pytest.mark.parametrize("way", [way for way in WAYS if way.id == "hvm-ehci"])
def test_pulling_out_what_is_not_there(usb: GuestUsb, way: Way) -> None:
    """xl refuses to detach a device from a controller that is not there, in words.

    docs/man/xl.1, "usbdev-detach".
    """
    assert not usb.controllers()
    ended = usb.guest.host.run("xl", "usbdev-detach", usb.guest.name, 0, 1)
    if ended.exit_code in (-SEGV, 128 + SEGV):
        pytest.xfail(
            "xl dies of a null pointer: vusb_be_from_xs_libxl_type of libxl_usb.c has the type of a controller that is "
            "not there, read as NULL without an error, compared with the names of types"
        )
    assert ended.exit_code == 1
    assert ended.stderr
