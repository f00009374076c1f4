"""A guest moves to a host of a later release, as in a rolling upgrade, and is refused by an earlier one.

docs/features/migration.pandoc and docs/specs/libxl-migration-stream.pandoc: a stream is for the same release and later
ones. The companions of the release under test are Debian's.
"""

from __future__ import annotations

import pytest

from fixtures.migration import Travellers
from xentests.host.guest_spec import GuestSpec
from xentests.host.host import Host

pytestmark = pytest.mark.needs("save-restore", "pvh", "amd64")

COMPANIONS = ("debian:bullseye", "debian:bookworm", "debian:trixie")
SPEC = GuestSpec(kind="pvh")
TAKEN = {((4, 17), (4, 14))}
"""From which release to which earlier one a guest goes all the same: nothing has the earlier look for the release."""


def must_be_earlier(host: Host, than: Host) -> None:
    """Skip the test when that companion is not what it asks for."""
    earlier, later = host.xl.info().release, than.xl.info().release
    if earlier >= later:
        pytest.skip(f"no companion: {earlier} is not earlier than {later}, the release under test")


@pytest.mark.parametrize("release", COMPANIONS)
def test_from_an_earlier_release(travellers: Travellers, release: str) -> None:
    """A guest that runs on an earlier release comes to this one, at work and with all its memory."""
    guest = travellers(SPEC, from_release=release, again=False)
    must_be_earlier(guest.migration.pair.a, guest.migration.pair.b)
    guest.go()


@pytest.mark.parametrize("release", COMPANIONS)
def test_to_an_earlier_release(travellers: Travellers, release: str) -> None:
    """A guest of this release is refused by an earlier one, and runs on where it was; where taken, it runs on there."""
    guest = travellers(SPEC, to_release=release, again=False)
    pair = guest.migration.pair
    must_be_earlier(pair.b, pair.a)
    before, log = guest.progress(), guest.log_there()
    attempt = guest.migration.attempt(guest.guest)
    if (pair.a.xl.info().release, pair.b.xl.info().release) not in TAKEN:
        assert not attempt.succeeded, attempt
        guest.stays(before)
        return
    assert attempt.succeeded, attempt
    assert attempt.source is None, attempt
    assert attempt.destination is not None, attempt
    guest.arrive(log, attempt.destination.domid)
    guest.works_since(before)
    pytest.xfail(f"{release} takes a guest of a later Xen, which nobody promises, and it goes on there")
