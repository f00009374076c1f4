"""Interfaces are attached, carry counted packets and checksummed data, are limited as asked, and are detached."""

from __future__ import annotations

import dataclasses

import pytest

from fixtures.guests import OWN
from fixtures.hotplug import BRIDGE, FOLDER, HOST_ADDRESS, NIC, TIMES, Rounds, growing, mainly, own_kind, plugging
from suites.hotplug.use import SOME_TIMES, bring_up, loses, ping_and_verify
from xentests.host.capabilities import GUEST_KINDS
from xentests.host.guest_spec import Kind
from xentests.host.guests import Guest
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

ADDRESS, OTHER_ADDRESS = "10.0.0.2", "10.0.0.3"
SCRIPT = f"{FOLDER}/vif-recording"
RECORD = f"{FOLDER}/record"
LIGHT = f"{FOLDER}/vif-light"
"""Does what vif-bridge does for an interface that it puts on a bridge, without what takes an emulated dom0 3 s."""
_LIGHT = f"""#!/bin/sh
if [ $1 = online ]; then
    ip link set $vif master {BRIDGE} up && xenstore-write $XENBUS_PATH/hotplug-status connected
fi
"""
_RECORDING = f"""#!/bin/bash
{{ echo "arguments=$*"; env; }} > {RECORD}.$1
exec /etc/xen/scripts/vif-bridge "$@"
"""
_SERVE = "httpd -h /tmp -p {0}:8000"
_FETCH = "wget -q -O - http://{0}:8000/sent | sha256sum"
SENT, PORT = 4 << 20, 9000
_UPTIME = "cut -d' ' -f1 /proc/uptime"
# nc ends when dom0 has had everything and closes its side, so what waits in buffers is not left out.
_SEND = f"{_UPTIME}; dd if=/dev/zero bs=64k count={SENT >> 16} 2>/dev/null | nc {HOST_ADDRESS} {PORT}; {_UPTIME}"
_MAKE = "dd if=/dev/urandom of=/tmp/sent bs=1M count=2 2>/dev/null; sha256sum < /tmp/sent"


@pytest.mark.parametrize(
    ("plugged", "script"),
    [
        pytest.param("pv", "light", marks=pytest.mark.needs("pv"), id="pv-light"),
        *(
            pytest.param(
                kind,
                "vif-bridge",
                marks=[pytest.mark.needs("amd64", capability), *([pytest.mark.long] if kind != "hvm" else [])],
                id=kind,
            )
            for kind, capability in GUEST_KINDS.items()
        ),
        pytest.param("pvh", "vif-bridge", marks=pytest.mark.needs("arm64"), id="arm64"),
    ],
    indirect=["plugged"],
)
def test_attach_use_detach(plugged: Guest, script: str, rounds: Rounds) -> None:
    """An interface comes and goes 20 times; each time every packet to dom0 and back is counted at both ends.

    docs/man/xl.1, network-attach and network-detach.
    """
    plugged.host.write_file(LIGHT, _LIGHT.encode(), mode=0o755)
    what = dataclasses.replace(NIC, script=LIGHT) if script == "light" else NIC
    before = plugged.host.leaks.snapshot()
    for _ in range(rounds(TIMES if script == "light" else SOME_TIMES)):
        device = plugged.devices.attach(what)
        assert device.number in plugged.devices.numbers("vif")
        name = bring_up(device, ADDRESS)
        ping_and_verify(device, count=5)
        device.detach()
        loses(plugged, f"/sys/class/net/{name}")
    plugged.host.leaks.check(before)


@mainly("hvm")
def test_data_to_dom0_and_back(plugged: Guest) -> None:
    """Two MiB each way between the guest and dom0 arrive as they were sent.

    docs/man/xl-network-configuration.5, bridge.
    """
    bring_up(plugged.devices.attach(NIC), ADDRESS)
    host = plugged.host
    host.succeed("sh", "-c", f"busybox {_SERVE.format(HOST_ADDRESS)}")
    plugged.succeed(_SERVE.format(ADDRESS))
    sent = host.succeed("sh", "-c", _MAKE).text
    assert plugged.succeed(_FETCH.format(HOST_ADDRESS), timeout_s=60) == sent
    sent = plugged.succeed(_MAKE)
    assert host.succeed("sh", "-c", f"busybox {_FETCH.format(ADDRESS)}", timeout_s=60).text == sent


@pytest.mark.parametrize("kind", OWN)
def test_data_to_another_guest(hosts: Hosts, one_cpu: Machine, kind: Kind) -> None:
    """Two guests with interfaces on one bridge reach each other: packets are counted, data arrives as it was sent.

    docs/man/xl-network-configuration.5, bridge.
    """
    specs = [growing(kind, one_cpu, qdisk=False, name=name) for name in ("guest", "other")]
    made = hosts.pristine(machine=one_cpu, prepared=plugging(*specs)).guests.made
    guest, other = made["guest"], made["other"]
    near = guest.devices.attach(NIC)
    bring_up(near, ADDRESS)
    bring_up(other.devices.attach(dataclasses.replace(NIC, mac="00:16:3e:00:00:02")), OTHER_ADDRESS)
    ping_and_verify(near, address=OTHER_ADDRESS)
    sent = other.succeed(_MAKE)
    other.succeed(_SERVE.format(OTHER_ADDRESS))
    assert guest.succeed(_FETCH.format(OTHER_ADDRESS), timeout_s=60) == sent


@own_kind
def test_script_is_called_with_its_environment(plugged: Guest) -> None:
    """The script of an interface is called when it comes and when it goes, and told which one in its environment.

    docs/man/xl-network-configuration.5, script; tools/hotplug/Linux/vif-bridge, "Environment vars".
    """
    host = plugged.host
    host.write_file(SCRIPT, _RECORDING.encode(), mode=0o755)
    device = plugged.devices.attach(dataclasses.replace(NIC, script=SCRIPT))
    device.detach()
    for action in ("online", "offline"):
        record = dict(line.split("=", 1) for line in _lines(host.read_file(f"{RECORD}.{action}")))
        assert record["arguments"] == f"{action} type_if=vif"
        assert record["script"] == SCRIPT
        assert record["vif"] == device.name
        assert record["XENBUS_PATH"] == device.back.removeprefix("/local/domain/0/")
        assert (record["XENBUS_TYPE"], record["XENBUS_BASE_PATH"]) == ("vif", "backend")


def _lines(data: bytes) -> list[str]:
    return [line for line in data.decode().split("\n") if "=" in line]


@pytest.mark.needs("pv")
def test_rate_limit_holds(hosts: Hosts, machine: Machine) -> None:
    """What a guest sends through an interface limited to 1 MB/s comes at that rate, within 20 %.

    docs/man/xl-network-configuration.5, rate: "the rate at which the outgoing traffic will be limited to".
    """
    spec = growing("pv", machine, qdisk=False)
    steady = machine.with_(timing="deterministic", cpus=1)
    guest = hosts.pristine(machine=steady, prepared=plugging(spec)).guests.made[spec.name]
    bring_up(guest.devices.attach(dataclasses.replace(NIC, rate="1MB/s@20ms")), ADDRESS)
    # Its own input stays open: at its end it would tell the sender so, which then stops.
    sink = guest.host.start("sh", "-c", f"mkfifo /run/open; busybox nc -l -p {PORT} <>/run/open | wc -c")
    guest.host.wait_until_succeeds("grep", "-q", f":{PORT:04X} ", "/proc/net/tcp", "/proc/net/tcp6", timeout_s=20)
    began, ended = (float(word) for word in guest.succeed(_SEND, timeout_s=120).split())
    assert sink.wait(20).text == str(SENT)
    assert 0.8e6 < SENT / (ended - began) < 1.2e6, f"{SENT} bytes took {ended - began:.2f} s"


@own_kind
def test_unknown_bridge_is_refused(plugged: Guest) -> None:
    """An interface for a bridge that does not exist is refused, with an error that names the bridge.

    docs/man/xl.1, network-attach; docs/man/xl-network-configuration.5, bridge.
    """
    before = plugged.host.leaks.snapshot()
    nowhere = dataclasses.replace(NIC, bridge="nowhere")
    result = plugged.devices.try_attach(nowhere)
    assert result.exit_code != 0
    assert "Could not find bridge device nowhere" in result.stderr.decode()
    left = plugged.host.leaks.snapshot().since(before)
    plugged.devices.find(nowhere).try_detach()
    plugged.host.leaks.check(before)
    if left:
        pytest.xfail("libxl leaves the nodes of a device whose script failed until it is detached (libxl_device.c)")


@own_kind
def test_unknown_interface_cannot_be_detached(plugged: Guest) -> None:
    """To detach an interface that the guest does not have is an error, and leaves those that it has.

    docs/man/xl.1, network-detach.
    """
    device = plugged.devices.attach(NIC)
    bring_up(device, ADDRESS)
    for name in ("7", "00:16:3e:00:00:09"):
        assert plugged.host.run("xl", "network-detach", plugged.name, name).exit_code != 0
    ping_and_verify(device)
