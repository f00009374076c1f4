"""vCPUs come and go while the guest runs, and each of them works while it is there."""

from __future__ import annotations

import re

import pytest

from fixtures.hotplug import TIMES, VCPUS, Rounds, only
from suites.hotplug.use import SOME_TIMES
from xentests.host.guests import Guest

_CPU = "/sys/devices/system/cpu/cpu1"
_ONLINE = "cat /sys/devices/system/cpu/online"
# A kernel that does not bring a new CPU online itself is told to, as xl.1 has it ("SEE ALSO").
_BRING_ONLINE = f'test -e {_CPU}/online && {{ [ "$(cat {_CPU}/online)" = 1 ] || echo 1 > {_CPU}/online; }}; {_ONLINE}'
_BUSY = "awk '/^cpu{0} / {{ print $2 + $4 }}' /proc/stat"
_WORK = "taskset {1} sh -c 'i=0; while [ $i -lt 6000 ]; do i=$((i+1)); done; echo done $i'"


def set_vcpus(guest: Guest, number: int) -> None:
    """Have the toolstack give a guest so many vCPUs, also more than the host has CPUs."""
    guest.host.succeed("xl", "vcpu-set", "--ignore-host", guest.name, number)


def online(guest: Guest) -> list[str]:
    """The states of the guest's vCPUs, as Xen has them: ``xl vcpu-list``; one that is not online is ``--p``."""
    text = guest.xl("vcpu-list").text
    return [state for _, state in re.findall(rf"^{guest.name} +{guest.domid} +\d+ +(\S+) +(\S+)", text, re.MULTILINE)]


def told(guest: Guest) -> list[str]:
    """What the toolstack has told the guest of each vCPU, in xenstore."""
    folder = f"/local/domain/{guest.domid}/cpu"
    found = guest.host.xenstore.ls(folder)
    return [found[f"{folder}/{number}/availability"] for number in range(VCPUS)]


def works(guest: Guest, number: int) -> bool:
    """Whether that vCPU does a piece of work: its result, and time of its own that went into it."""
    busy, work = _BUSY.format(number), _WORK.format(number, f"{1 << number:x}")
    before, done, after = guest.succeed(f"{busy}; {work}; {busy}").split("\n")
    return done == "done 6000" and int(after) > int(before)


@only("pv", "pvh")
def test_up_and_down(plugged: Guest, rounds: Rounds) -> None:
    """A second vCPU comes and goes 20 times; the guest counts it, it works, and Xen and xenstore agree.

    docs/man/xl.1, vcpu-set: "the highest number VCPUs will be hotplug removed".
    """
    set_vcpus(plugged, 1)
    plugged.wait_for(_ONLINE, "0")
    assert works(plugged, 0)
    for _ in range(rounds(TIMES if plugged.spec.kind == "pv" else SOME_TIMES)):
        set_vcpus(plugged, VCPUS)
        plugged.wait_for(_BRING_ONLINE, "0-1")
        assert works(plugged, 1)
        assert told(plugged) == ["online", "online"]
        assert "--p" not in online(plugged)
        set_vcpus(plugged, 1)
        plugged.wait_for(_ONLINE, "0")
        assert told(plugged) == ["online", "offline"]
        assert online(plugged)[1] == "--p"


@only("hvm")
def test_up_and_down_by_acpi(plugged: Guest) -> None:
    """An HVM guest is told of a second vCPU by ACPI, counts it and works with it; taken away, it is gone.

    docs/man/xl.1, vcpu-set: "the highest number VCPUs will be hotplug removed".
    """
    added = plugged.host.run("xl", "vcpu-set", "--ignore-host", plugged.name, VCPUS)
    old = plugged.host.xl.info().release < (4, 15)
    if old and "command cpu-add has not been found" in added.stderr.decode():
        pytest.xfail("libxl of 4.14 adds CPUs by QEMU's cpu-add, which QEMU 5.2 and later do not have (libxl_domain.c)")
    assert added.exit_code == 0, added
    plugged.wait_for(_BRING_ONLINE, "0-1")
    assert works(plugged, 0)
    assert works(plugged, 1)
    set_vcpus(plugged, 1)
    assert told(plugged) == ["online", "offline"]
    plugged.wait_tick()
    if plugged.succeed(_ONLINE) == "0-1":
        pytest.xfail("libxl has QEMU add CPUs only (libxl_domain.c, libxl_set_vcpuonline), so an HVM guest keeps them")
    assert online(plugged)[1] == "--p"


@only("pv")
def test_more_than_the_host_has(plugged: Guest) -> None:
    """More vCPUs than the host has CPUs are refused unless that is insisted on, and nothing changes.

    docs/man/xl.1, vcpu-set: "--ignore-host: Ignore the physical CPU count of the host".
    """
    refused = plugged.host.fail("xl", "vcpu-set", plugged.name, VCPUS)
    assert "overcommmitting" in refused.stderr.decode()
    assert told(plugged) == ["online", "offline"]


@pytest.mark.parametrize("number", [0, VCPUS + 1], ids=["none", "too-many"])
def test_impossible_numbers(plugged: Guest, number: int) -> None:
    """No vCPU at all, or more than the guest was made for, change nothing; too many are an error.

    docs/man/xl.1, vcpu-set: "a number larger than the initially configured VCPU count is an error. Trying to set VCPUs
    to < 1 will be quietly ignored".
    """
    before, seen = told(plugged), plugged.succeed(_ONLINE)
    result = plugged.host.run("xl", "vcpu-set", "--ignore-host", plugged.name, number)
    assert number == 0 or result.exit_code != 0
    assert told(plugged) == before
    assert plugged.succeed(_ONLINE) == seen
    plugged.wait_tick()
