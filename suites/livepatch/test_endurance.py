"""Live patching in the long run and under load: many cycles, memory, CPUs that go and come, a reboot."""

from __future__ import annotations

import re

import pytest

from suites.livepatch.refused import sound
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload import damage
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads

pytestmark = pytest.mark.needs("livepatch")

CYCLES, AT_A_TIME = 200, 20
ROUNDS = 500
PAGE_KIB = 4
BUSY = "while :; do :; done"
"""At the lowest priority, so that dom0 can answer in between; the CPUs are busy all the same."""


def test_many_cycles_with_all_cpus_busy(
    livepatch_host: Host, sysctl: LivepatchSysctl, livepatch_guest: Guest, payloads: Payloads
) -> None:
    """200 times applied and reverted while every CPU and the guest are busy: each works, and nothing is lost.

    docs/misc/livepatch.pandoc, "When to patch": all CPUs meet in lockstep, whatever they do. The minor version, which
    is replaced, is asked for by dom0's kernel all the time.
    """
    before = free_kib(livepatch_host)
    payload = payloads.replace_all({EXTRA_VERSION: "CYCLES", MINOR_VERSION: livepatch_host.xl.info().raw["xen_minor"]})
    livepatch_host.livepatch.upload(payload)
    tick = livepatch_guest.wait_tick()
    jobs = [
        livepatch_host.start("nice", "-n", "19", "sh", "-c", BUSY) for _ in range(livepatch_host.domain.machine.cpus)
    ]
    livepatch_guest.console.send(f"{BUSY} & busy=$!\r")
    livepatch_host.console.read()
    whole = sum(sysctl.cycles(payload.name, AT_A_TIME) for _ in range(CYCLES // AT_A_TIME))
    livepatch_guest.console.run("kill $busy")
    for job in jobs:
        job.kill()
    log = livepatch_host.console.read()
    assert whole == CYCLES
    assert len(re.findall("finished APPLY with rc=0", log)) == CYCLES
    assert len(re.findall("finished REVERT with rc=0", log)) == CYCLES
    assert sysctl.states() == {payload.name: "CHECKED"}
    assert before - free_kib(livepatch_host) < CYCLES * PAGE_KIB // 2
    assert livepatch_guest.wait_tick().number > tick.number


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
def test_uploads_give_their_memory_back(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, refused: bool
) -> None:
    """500 uploads, unloaded or refused half-way, leave as much free memory as there was.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_UNLOAD. Not even a page is lost each time; Xen's own heap may grow.
    """
    damages = [damage.symbol("no_such_symbol_in_xen")] if refused else []
    before = free_kib(livepatch_host)
    assert sysctl.upload_and_unload(sound(payloads).build(*damages), ROUNDS) == ROUNDS
    assert before - free_kib(livepatch_host) < ROUNDS * PAGE_KIB // 2


@pytest.mark.needs("cpu-hotplug")
def test_a_cpu_that_was_offline(xen_host: Host, payloads: Payloads) -> None:
    """With a CPU offline a payload is applied by the others, and the CPU runs the new code when it is back.

    docs/misc/livepatch.pandoc, "When to patch": the CPUs that are online meet.
    """
    xen_host.succeed("xen-hptool", "cpu-offline", "1")
    xen_host.livepatch.upload(payloads.replace(returns="ONE CPU LESS")).apply()
    assert dom0_sees(xen_host) == "ONE CPU LESS"
    xen_host.succeed("xen-hptool", "cpu-online", "1")
    xen_host.succeed("xl", "vcpu-pin", "0", "all", "1")
    assert dom0_sees(xen_host) == "ONE CPU LESS"
    assert xen_host.livepatch.sysctl.clear().payloads == 0


def test_patches_are_gone_after_a_reboot(xen_host: Host, payloads: Payloads) -> None:
    """A reboot brings back the hypervisor as it was built: no payload, old code, and payloads can be applied anew.

    docs/misc/livepatch.pandoc, "Workflow": patches are loaded by tools of higher levels, again after each boot.
    """
    before = xen_host.xl.info()
    file = payloads.replace(returns="UNTIL REBOOT")
    xen_host.livepatch.upload(file).apply()
    assert dom0_sees(xen_host) == "UNTIL REBOOT"
    xen_host.reboot()
    after = xen_host.xl.info()
    assert xen_host.livepatch.list() == []
    assert (after.xen_extra, after.build_id) == (before.xen_extra, before.build_id)
    xen_host.livepatch.upload(file).apply()
    assert dom0_sees(xen_host) == "UNTIL REBOOT"


def free_kib(host: Host) -> int:
    """Free memory by Xen's debug key "m": to the page, where `xl info` counts whole MiB.

    The last one that is told: a full message ring may give an older answer with it.
    """
    return int(re.findall(r"Dom heap: (\d+)kB", host.xl.debug_keys("m"))[-1])
