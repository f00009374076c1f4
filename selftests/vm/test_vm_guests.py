"""Which guests survive the freeze of their host, and what is said of one that does not come again as it should.

All kinds survive, in each of several clones of one template: running PV guests as they are; those in the CPU's guest
mode, and all of arm64, paused around it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.guests import with_guest
from xentests.host.guest_log import GuestFailure
from xentests.host.guest_spec import GuestSpec, Kind
from xentests.session import Options, Session

CLONES = 3


@pytest.mark.parametrize(
    ("arch", "cpus", "kind"),
    [("amd64", 1, "pv"), ("amd64", 1, "pvh"), ("amd64", 1, "hvm"), ("arm64", 2, "pvh"), ("arm64", 1, "pvh")],
)
def test_frozen_guest_goes_on(arch: str, cpus: int, kind: Kind, runs: Path) -> None:
    """Its clock ticks on and its console answers."""
    name = f"{arch}-{cpus}-{kind}"
    spec = GuestSpec(kind=kind, vcpus=cpus)
    prepared = with_guest(spec, key=name)
    with Session(Options(run_dir=runs / name, arch=arch)) as session:
        base = session.template(session.machine.with_(cpus=cpus))
        template = session.derive(base, key=prepared.key, prepare=prepared.prepare)
        for number in range(CLONES):
            host = session.clone(template, name=f"{name}-{number}", log_dir=runs / f"{name}-{number}", standby=False)
            prepared.attached(host)
            guest = host.guests.made[spec.name]
            first, second = guest.wait_tick(), guest.wait_tick()
            assert second.number == first.number + 1
            assert guest.succeed("nproc") == str(cpus)
            session.end(host)


def test_a_guest_that_ends_in_its_reboot_is_told_of(
    session: Session, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second end, between its reboot and its first word: not taken for the reboot that was asked for."""
    prepared = with_guest(GuestSpec(), key="amd64-1-pv")
    template = session.derive(session.template(session.machine.with_(cpus=1)), key="reboots", prepare=prepared.prepare)
    host = session.clone(template, name="reboots", log_dir=runs / "reboots", standby=False)
    prepared.attached(host)
    guest = host.guests.made["guest"]
    ready = guest.wait_ready

    def ends_once_more(timeout_s: float) -> None:
        ready(timeout_s)
        guest.xl("destroy")

    monkeypatch.setattr(guest, "wait_ready", ends_once_more)
    guest.console.send("reboot -f\r")
    with pytest.raises(
        GuestFailure, match=r"started again as domain \d+.*says None(?s:.*)has shut down, reason code 1"
    ):
        guest.wait_reboot()
    session.end(host)
