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


def version(host: Host) -> tuple[int, int]:
    """Major and minor version of a host's Xen."""
    info = host.xl.info()
    return info.xen_major, info.xen_minor


@pytest.mark.parametrize("release", COMPANIONS)
def test_from_an_earlier_release(travellers: Travellers, release: str) -> None:
    """A guest that runs on an earlier release comes to this one, at work and with all its memory."""
    guest = travellers(SPEC, from_release=release, again=False)
    pair = guest.migration.pair
    if version(pair.a) >= version(pair.b):
        pytest.skip(f"not a companion: {release} is not earlier than the release under test")
    guest.go()


@pytest.mark.parametrize("release", COMPANIONS)
def test_to_an_earlier_release(travellers: Travellers, release: str) -> None:
    """A guest of this release is refused by an earlier one, or arrives unharmed; it is on one side in the end."""
    guest = travellers(SPEC, to_release=release, again=False)
    pair = guest.migration.pair
    if version(pair.b) >= version(pair.a):
        pytest.skip(f"not a companion: {release} is not earlier than the release under test")
    before, attempt = guest.progress(), guest.migration.attempt(guest.guest)
    assert not attempt.succeeded, attempt
    guest.stays(before)
