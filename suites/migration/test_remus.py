"""A guest is replicated to another host, checkpoint by checkpoint, and goes on there when its own is lost.

docs/man/xl.1, "remus"; docs/README.remus. Output of the network and writes to disks are not held back here (-n, -d).
"""

from __future__ import annotations

import pytest

from fixtures.migration import Traveller, Travellers
from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.capabilities import GUEST_KINDS
from xentests.host.guest_spec import Disk, GuestSpec, Kind
from xentests.host.migration import Underway

pytestmark = pytest.mark.needs("save-restore", "amd64")

INTERVAL_MS = 1000
COUNTS_A_SECOND = 10
BEHIND_S = 15.0
"""How old the last checkpoint may be: the interval, and what an emulated host takes to make and to send one."""
CHECKPOINTS = 3
DISK = "/run/remus.img"
KINDS = [
    pytest.param(kind, id=kind, marks=pytest.mark.needs(need, *(["shadow"] if kind == "pv" else [])))
    for kind, need in GUEST_KINDS.items()
]


def replicate(guest: Traveller) -> Underway:
    """Have checkpoints of a guest sent to the other host; returns when some have been."""
    options = ("-F", "-n", "-d", "-u", "-i", str(INTERVAL_MS))
    underway = guest.migration.begin(guest.guest, *options, command="remus", receive="-r")

    def checkpoints() -> bool:
        ended = underway.job.poll()
        assert ended is None, f"{ended}\nthe receiver said: {underway.received}"
        # It stands still at each, and the one before is complete by then.
        return int(guest.guest.run("dmesg | grep -c 'Freezing user space'").text) > CHECKPOINTS

    until(checkpoints, what=f"{CHECKPOINTS} checkpoints of {guest.guest}", deadline=120.0, error=ProductFailure)
    return underway


@pytest.mark.parametrize("kind", KINDS)
def test_fail_over(travellers: Travellers, kind: Kind) -> None:
    """The primary's machine is gone: the guest goes on at the backup, from a checkpoint that is not old.

    docs/man/xl.1, "remus": "Checkpoint domain memory every MS milliseconds".
    """
    guest = travellers(GuestSpec(kind=kind), again=False)
    underway = replicate(guest)
    backup = underway.destination
    log = guest.log_there()
    last = guest.progress()
    guest.lose_host()
    underway.hang_up()

    found = until(
        lambda: next((each for each in backup.xl.list() if each.name == guest.guest.name and not each.paused), None),
        what=f"{backup.name} to run the guest",
        deadline=30.0,
        error=ProductFailure,
        advice=underway.received,
    )
    assert found is not None
    guest.arrive(log, found.domid)
    now = guest.progress()
    assert now.count > last.count - BEHIND_S * COUNTS_A_SECOND, f"the checkpoint was old: {now}, and before {last}"
    guest.works_since(now)


@pytest.mark.needs("pvh")
def test_a_disk_that_cannot_be_replicated(travellers: Travellers) -> None:
    """Without -d every disk has to be DRBD's with Remus' protocol D: refused with any other, and the guest runs on.

    docs/README.remus; tools/hotplug/Linux/block-drbd-probe, which is asked. No kernel but Remus' own has protocol D.
    """
    pair = travellers.pair()
    for host, _ in pair.sides:
        host.succeed("truncate", "-s", "16M", DISK)
    guest = travellers.made(pair, GuestSpec(kind="pvh", disks=(Disk(DISK, vdev="xvdb"),)))
    before = guest.progress()
    attempt = guest.migration.begin(guest.guest, "-F", "-n", "-u", command="remus", receive="-r").finish()
    assert "failed to setup device" in attempt.said, attempt.said
    guest.stays(before)
