"""A migration fails on its way: the guest runs on exactly one side afterwards, never on two, never on none.

docs/man/xl.1, "migrate"; tools/xl/xl_migrate.c: until the receiver has said that it runs, the sender has the guest.
"""

from __future__ import annotations

import pytest

from fixtures.migration import Traveller, Travellers
from xentests.host.guest_spec import GuestSpec
from xentests.lab.machine import Machine

pytestmark = pytest.mark.needs("save-restore", "pvh", "amd64")

SPEC = GuestSpec(kind="pvh")
XL_AND_HELPER = "^xl migrate|libxl-save-helper"
"""The one has the other do the work, which outlives it and holds the connection open."""
FULL = "/var/lib/xen"
SMALL_MIB = 128
"""What the receiver has beside its dom0, Xen itself included: too little for the guest."""


def cleared(guest: Traveller) -> None:
    """The receiver has nothing left of the guest that did not arrive."""
    other = guest.migration.other(guest.guest.host)
    assert [domain.name for domain in other.xl.list()] == ["Domain-0"]


def still_movable(guest: Traveller) -> None:
    """Nothing of the failure stands in the way of the next migration."""
    guest.go()


def test_link_is_cut(travellers: Travellers) -> None:
    """The cable is cut while memory is sent: the sender gives up when TCP does, and the guest runs on there."""
    guest = travellers(SPEC)
    before, underway = guest.progress(), guest.begin()
    underway.wait_streaming()
    guest.migration.pair.cable.cut()
    sent = underway.job.wait(120.0)
    assert sent.exit_code != 0, sent
    guest.stays(before)
    # What a keep-alive of ssh's would do for the receiver, which waits for the rest of the stream.
    underway.hang_up()
    attempt = underway.finish()
    assert not attempt.succeeded
    cleared(guest)
    guest.migration.pair.cable.mend()
    guest.migration.pair.wait_reached()
    still_movable(guest)


def test_receiver_is_killed(travellers: Travellers) -> None:
    """The receiving xl is killed while memory is sent: the guest runs on at the sender, and half of it nowhere."""
    guest = travellers(SPEC)
    before, underway = guest.progress(), guest.begin()
    underway.wait_streaming()
    other = underway.destination
    other.succeed("pkill", "-KILL", "-f", XL_AND_HELPER)
    attempt = underway.finish()
    assert not attempt.succeeded, attempt
    guest.stays(before)
    for domain in other.xl.list():
        if domain.domid:  # nobody was left to remove it; it has never run
            assert domain.name == f"{SPEC.name}--incoming"
            assert domain.time_s < 0.1
            other.succeed("xl", "destroy", domain.domid)
    still_movable(guest)


def test_sender_is_killed(travellers: Travellers) -> None:
    """The sending xl is killed while memory is sent: the guest, which never stood, runs on; the receiver clears up.

    A second migration works, although the first has left Xen tracking what the guest writes.
    """
    guest = travellers(SPEC)
    before, underway = guest.progress(), guest.begin()
    underway.wait_streaming()
    guest.guest.host.succeed("pkill", "-KILL", "-f", XL_AND_HELPER)
    attempt = underway.finish()
    assert attempt.sent.exit_code == -9, attempt
    guest.stays(before)
    cleared(guest)
    still_movable(guest)


def test_name_is_taken(travellers: Travellers) -> None:
    """A guest whose name another one has at the receiver stays where it is, and so does the other."""
    guest = travellers(SPEC)
    other = guest.migration.other(guest.guest.host)
    namesake = other.guests.create(GuestSpec(kind="pvh", name=SPEC.name))
    before, attempt = guest.progress(), guest.migration.attempt(guest.guest)
    assert not attempt.succeeded, attempt
    assert attempt.destination is not None
    assert attempt.destination.domid == namesake.domid, attempt
    assert attempt.source is not None
    assert attempt.source.domid == guest.guest.domid, attempt
    namesake.wait_tick()
    guest.works_since(before)
    other.guests.destroy(namesake)
    cleared(guest)
    still_movable(guest)


def test_receiver_has_no_memory(travellers: Travellers, one_cpu: Machine) -> None:
    """A guest for which the receiver has not memory enough stays where it is, and the receiver says why."""
    small = one_cpu.with_(memory_mib=one_cpu.dom0_memory_mib + SMALL_MIB)
    guest = travellers(SPEC, there=small, again=False)
    before, attempt = guest.progress(), guest.migration.attempt(guest.guest)
    assert not attempt.succeeded, attempt
    assert "Failed to populate" in attempt.received, attempt
    guest.stays(before)
    cleared(guest)


def test_receiver_has_a_full_disk(travellers: Travellers) -> None:
    """Where the receiver cannot write down what the guest is, the guest stays where it is; with room, it can go."""
    guest = travellers(SPEC)
    other = guest.migration.other(guest.guest.host)
    other.succeed("mount", "-t", "tmpfs", "-o", "size=4k", "full", FULL)
    other.succeed("sh", "-c", 'head -c 4096 /dev/zero > "$1/full"', "fill", FULL)
    before, attempt = guest.progress(), guest.migration.attempt(guest.guest)
    assert not attempt.succeeded, attempt
    assert "No space left on device" in attempt.received, attempt
    guest.stays(before)
    cleared(guest)
    other.succeed("umount", FULL)
    still_movable(guest)


def test_stream_ends_too_early(travellers: Travellers) -> None:
    """A stream that ends in the middle makes no guest at the receiver, and costs none at the sender."""
    guest = travellers(SPEC)
    before = guest.progress()
    attempt = guest.migration.attempt(guest.guest, through="head -c 20000000")
    assert not attempt.succeeded, attempt
    guest.stays(before)
    cleared(guest)
    still_movable(guest)
