"""Two guests that have more than 512 GiB together, one of which shrinks and grows across that line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures.giants import LINE_GIB, Layout, Peak, giant, giant_guest
from suites.memory.use import balloon, sizes_of, use_all
from xentests.host import frames
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.pytest_plugin.harness import Harness
from xentests.pytest_plugin.supply import Prepared, Shared, Supply

pytestmark = pytest.mark.needs("amd64", "pv")

HOST_GIB, SECOND_GIB = 576, 40
BEYOND_MIB = 32
FIRST = giant_guest((LINE_GIB << 10) + BEYOND_MIB, name="first")
SECOND = giant_guest(SECOND_GIB << 10, name="second")


@pytest.fixture(scope="module")
def _hosts(supply: Supply, machine: Machine, xen_harness: Harness, request: pytest.FixtureRequest) -> Iterator[Shared]:
    def prepare(host: Host) -> None:
        frames.install(host)
        for spec in (FIRST, SECOND):
            host.guests.create(spec)

    shared = Shared(
        supply,
        xen_harness,
        name="two",
        folder=xen_harness.run.folder(request.node.nodeid),
        prepared=Prepared("two guests", prepare),
        machine=giant(machine, HOST_GIB, guests_gib=LINE_GIB + SECOND_GIB, largest_gib=LINE_GIB),
    )
    yield shared
    shared.renew()


@pytest.fixture
def two(_hosts: Shared, peak: Peak) -> tuple[Guest, Guest]:
    """Both, running."""
    host = _hosts.get()
    peak(host)
    return host.guests.made["first"], host.guests.made["second"]


def test_both_have_their_memory(two: tuple[Guest, Guest]) -> None:
    """Together they have more than 512 GiB; each uses its own, by frame, while the other runs."""
    sizes = [sizes_of(guest).xen_mib for guest in two]
    assert sizes == [FIRST.memory_mib, SECOND.memory_mib]
    assert sum(sizes) > LINE_GIB << 10
    for guest in two:
        use_all(guest, Layout(guest.spec.memory_mib).windows)
    for guest in two:
        guest.wait_tick()


def test_balloon_across_the_line(two: tuple[Guest, Guest]) -> None:
    """A guest shrinks from above 512 GiB to below and grows back, twice; all agree, and its neighbour loses nothing.

    docs/man/xl.1, "mem-set".
    """
    first, second = two
    before = sizes_of(first)
    free = first.host.xl.info().free_memory
    for _ in range(2):
        balloon(first, before.xen_mib - 2 * BEYOND_MIB)
        low = sizes_of(first)
        assert low.xen_mib == low.listed_mib == low.target_mib == low.balloon_mib == before.xen_mib - 2 * BEYOND_MIB
        assert low.xen_mib < LINE_GIB << 10
        assert abs(first.host.xl.info().free_memory - free - 2 * BEYOND_MIB) <= 2
        balloon(first, before.xen_mib)
        assert sizes_of(first) == before
    use_all(first, Layout(FIRST.memory_mib).windows)
    assert sizes_of(second).xen_mib == SECOND.memory_mib
    second.wait_tick()
