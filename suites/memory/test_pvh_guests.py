"""PVH guests: what is above 512 GiB is theirs, too, without a list of frames and a kernel that stops there."""

from __future__ import annotations

import pytest

from fixtures.giants import LINE_FRAME, LINE_GIB, Layout, Peak, giant, giant_guest
from suites.memory.use import ends_mib, sizes_of, use_all
from xentests.host import frames
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

pytestmark = pytest.mark.needs("amd64", "pvh")


@pytest.mark.parametrize(
    ("guest_gib", "host_gib"), [pytest.param(64, 128, id="64G"), pytest.param(513, 576, id="513G")]
)
def test_pvh_guest(hosts: Hosts, machine: Machine, peak: Peak, guest_gib: int, host_gib: int) -> None:
    """A PVH guest is built, boots and uses pages by frame; Xen, xl, xenstore and its own map agree on its size.

    docs/man/xl.cfg.5, "type" and "memory".
    """
    host = hosts.pristine(machine=giant(machine, host_gib, guests_gib=guest_gib), again=False)
    peak(host)
    frames.install(host)
    guest = host.guests.create(giant_guest(guest_gib << 10, kind="pvh"))
    used = use_all(guest, Layout(guest_gib << 10, "pvh").windows)
    if guest_gib > LINE_GIB:
        assert used["above 512 GiB"].lowest >= LINE_FRAME
    seen = sizes_of(guest)
    assert seen.listed_mib == seen.target_mib == seen.static_max_mib == guest.spec.memory_mib
    # Without a balloon to ask: it counts what the kernel was left. Its map has a hole of up to a GiB below 4 GiB.
    assert 0 <= seen.xen_mib - guest.spec.memory_mib <= 2
    assert guest.spec.memory_mib <= ends_mib(guest) <= guest.spec.memory_mib + 1024
