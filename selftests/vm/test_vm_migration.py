"""What the migration suite relies on to notice: Xen's check and the stream are sabotaged, and its tests turn red."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fixtures.migration import MARK, Travellers
from fixtures.pairs import joining
from suites.migration import test_levels, test_same_level
from xentests.errors import ProductFailure
from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.payload.factory import Payloads
from xentests.payload.symbols import read_symbols
from xentests.pytest_plugin.supply import Hosts, Prepared
from xentests.session import Session

SPOIL = "/run/spoil"
# Both tools talk to each other first and last, so that none of that may wait in a buffer for the end of a line.
_SPOIL = f"""#!/bin/sh
dd bs=64k count=16 status=none
head -c 138000000 | LC_ALL=C sed s/{MARK}/{MARK.upper()}/
exec cat
"""


class SessionHosts:
    """What suites get hosts from, here without a run around it; ``sabotage`` is done to each."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.made: list[Host] = []
        self._folder = folder

    def pristine(self, *, machine: Machine, prepared: Prepared | None = None, **_: Any) -> Host:
        """A clone."""
        template = self.session.template(machine)
        if prepared is not None:
            template = self.session.derive(template, key=prepared.key, prepare=prepared.prepare)
        name = f"xen{len(self.made)}"
        host = self.session.clone(template, name=name, log_dir=self._folder / name, standby=False)
        self.made.append(host)
        if prepared is not None:
            prepared.attached(host)
        return host


@pytest.fixture
def hosts(session: Session, runs: Path, request: pytest.FixtureRequest) -> Iterator[SessionHosts]:
    """Makes hosts that end with the test."""
    made = SessionHosts(session, runs / request.node.name)
    yield made
    for host in made.made:
        session.end(host)


@pytest.fixture
def travellers(hosts: SessionHosts, session: Session) -> Iterator[Travellers]:
    """Guests at work, as suites/migration has them."""
    with joining() as join:
        yield Travellers(cast(Hosts, hosts), session.machine.with_(cpus=1), join)


def test_a_check_that_accepts_all(hosts: SessionHosts, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hypervisor whose policy check was patched to return 0 turns suites/migration's test of it red."""
    pristine = hosts.pristine

    def sabotaged(**wishes: Any) -> Host:
        host = pristine(**wishes)
        assert host.image.symbols is not None
        payload = Payloads(read_symbols(host.image.symbols)).replace("x86_cpu_policies_are_compatible", returns=0)
        host.livepatch.upload(payload).apply()
        return host

    monkeypatch.setattr(hosts, "pristine", sabotaged)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_levels.test_a_policy_beyond_the_host_is_refused(cast(Hosts, hosts), session.machine.with_(cpus=1))


def test_a_page_that_changes_on_the_way(travellers: Travellers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a page that are changed in the stream turn suites/migration's test at one level red."""
    made = Travellers.__call__

    def sabotaged(self: Travellers, *arguments: Any, **wishes: Any) -> Any:
        guest = made(self, *arguments, **wishes)
        attempt = guest.migration.attempt
        guest.guest.host.write_file(SPOIL, _SPOIL.encode(), mode=0o755)
        monkeypatch.setattr(guest.migration, "attempt", lambda *words, **more: attempt(*words, through=SPOIL, **more))
        return guest

    monkeypatch.setattr(Travellers, "__call__", sabotaged)
    notes: dict[str, float] = {}
    with pytest.raises(ProductFailure, match=r"sha256sum -c -s kept\.sum` ended with exit code 1"):
        test_same_level.test_there_and_back(travellers, "pvh", notes.__setitem__)
