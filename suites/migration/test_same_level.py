"""A guest moves between two hosts that are alike, at work, and has lost nothing when it arrives."""

from __future__ import annotations

import pytest

from fixtures.guests import NO_THREADS
from fixtures.migration import Travellers
from fixtures.releases import Figure
from xentests.host.capabilities import GUEST_KINDS
from xentests.host.guest_spec import GuestSpec, Kind

pytestmark = pytest.mark.needs("save-restore")

KINDS = [
    # To track the pages that a PV guest writes, Xen needs shadow paging; HAP does it for the others.
    pytest.param(kind, id=kind, marks=pytest.mark.needs(need, *(["shadow"] if kind == "pv" else [])))
    for kind, need in GUEST_KINDS.items()
]
ROUND_TRIPS = 10
SAVED = "/root/saved"
_WRITE = "dd if=/dev/urandom of=/tmp/dirty bs=64k count=32 conv=notrunc 2>/dev/null"
_DIRTY = f"(while [ ! -e /tmp/stop ]; do {_WRITE}; done) & true"


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(travellers: Travellers, kind: Kind, figure: Figure) -> None:
    """A guest goes to the other host and comes back, counting, with all its memory, and is in one place each time.

    docs/man/xl.1, "migrate".
    """
    guest = travellers(GuestSpec(kind=kind))
    there = guest.go()
    back = guest.go()
    for way, moved in (("there", there), ("back", back)):
        figure(f"migration {way}, s", round(moved.duration_s, 2))
        figure(f"downtime {way}, s", round(moved.downtime_s, 2))


@pytest.mark.needs("pvh")
def test_two_vcpus_under_memory_dirtying(travellers: Travellers, figure: Figure) -> None:
    """A guest of two vCPUs that goes on writing to memory arrives with both, and with all it had written.

    docs/features/migration.pandoc: what is written while it is sent is sent again, and the last of it while it stands.
    """
    guest = travellers(GuestSpec(kind="pvh", vcpus=2, cpuid=NO_THREADS))
    guest.guest.succeed(_DIRTY)
    moved = guest.go()
    figure("downtime, s", round(moved.downtime_s, 2))
    assert guest.guest.succeed("cat /sys/devices/system/cpu/online") == "0-1"
    for cpu in (0, 1):
        guest.guest.succeed(f"taskset {1 << cpu:x} true")
    guest.guest.succeed("touch /tmp/stop; test -s /tmp/dirty")


@pytest.mark.long
@pytest.mark.needs("pvh")
def test_ten_round_trips(travellers: Travellers, figure: Figure) -> None:
    """Ten times there and back: no migration wears a guest, or a host, out.

    docs/man/xl.1, "migrate".
    """
    guest = travellers(GuestSpec(kind="pvh"))
    home = guest.guest.host
    guest.go()
    away, home_alone = guest.guest.host, home.leaks.snapshot()
    guest.go()
    away_alone = away.leaks.snapshot()
    # Looked at while the guest is on the other one: wherever it is, it has another id than before.
    downtimes = [guest.go().downtime_s for _ in range(2 * ROUND_TRIPS - 3)]
    home.leaks.check(home_alone)
    downtimes.append(guest.go().downtime_s)
    away.leaks.check(away_alone)
    figure("longest downtime, s", round(max(downtimes), 2))


@pytest.mark.needs("pv")
def test_a_pv_guest_that_cannot_move_stays(travellers: Travellers) -> None:
    """A PV guest that a build cannot send is refused before anything happens to it, and runs on.

    Xen tracks what a PV guest writes by shadow paging (SHADOW_PAGING in xen/arch/x86/Kconfig: "Live migration of PV
    guests").
    """
    guest = travellers(GuestSpec(kind="pv"))
    if guest.guest.host.capabilities["shadow"]:
        pytest.skip("nothing to refuse: this build sends PV guests (test_there_and_back)")
    before = guest.progress()
    attempt = guest.migration.attempt(guest.guest)
    assert not attempt.succeeded, attempt
    assert "Failed to enable logdirty" in attempt.said, attempt
    guest.stays(before)
    pytest.xfail("PV guests cannot be live-migrated: this build has no SHADOW_PAGING, by which Xen tracks their writes")


@pytest.mark.needs("pvh")
def test_two_at_once(travellers: Travellers) -> None:
    """Two guests are sent at the same time, and both arrive with all they have.

    docs/man/xl.1, "migrate".
    """
    pair = travellers.pair()
    guests = [travellers.made(pair, GuestSpec(kind="pvh", name=name, memory_mib=112)) for name in ("one", "two")]
    before = [guest.progress() for guest in guests]
    logs = [guest.log_there() for guest in guests]
    underway = [guest.begin(port=8002 + at) for at, guest in enumerate(guests)]
    for at, guest in enumerate(guests):
        attempt = underway[at].finish()
        assert attempt.succeeded, attempt
        assert attempt.destination is not None, attempt
        guest.arrive(logs[at], attempt.destination.domid)
        guest.works_since(before[at])
    assert sorted(domain.name for domain in pair.b.xl.list()) == ["Domain-0", "one", "two"]
    assert [domain.name for domain in pair.a.xl.list()] == ["Domain-0"]


@pytest.mark.needs("pvh")
def test_not_live(travellers: Travellers) -> None:
    """A guest that is saved, carried over and restored goes on with its work where it was.

    docs/man/xl.1, "save" and "restore".
    """
    guest = travellers(GuestSpec(kind="pvh"))
    before, log, other = guest.progress(), guest.log_there(), guest.migration.other(guest.guest.host)
    guest.guest.save(SAVED)
    guest.migration.carry(guest.guest.host, SAVED)
    other.succeed("xl", "restore", SAVED, timeout_s=120)
    found = other.xl.find(guest.guest.name)
    assert found is not None
    guest.arrive(log, found.domid)
    guest.works_since(before)
