"""After each test of this suite its guests are ended, and its hosts must hold no more than hosts that never had one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xentests.host.leaks import Snapshot
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts
from xentests.session import machine_of


@pytest.fixture(scope="session")
def empties() -> dict[Machine, Snapshot]:
    """What a host holds that never had a guest, by its machine; filled as tests end."""
    return {}


@pytest.fixture(autouse=True)
def _nothing_is_left(hosts: Hosts, empties: dict[Machine, Snapshot], request: pytest.FixtureRequest) -> Iterator[None]:
    """Raises Leak in the test's tear-down, unless the test has failed already."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed != failed:
        return
    for host in list(hosts.made):
        machine = machine_of(host).machine
        if machine not in empties:
            empties[machine] = hosts.pristine(machine=machine, again=False).leaks.snapshot()
        for domain in host.xl.list():
            if domain.domid:
                host.run("xl", "destroy", domain.domid, timeout_s=60)  # what stays all the same is a leak
        host.leaks.check(empties[machine])
