"""Not a selftest but what test_vm_killed runs in a pytest of its own, to be killed or interrupted."""

from __future__ import annotations

import sys
import uuid

from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts


def test_answers(xen_host: Host) -> None:
    """A pristine host answers."""
    assert xen_host.succeed("echo", "yes").text.strip() == "yes"


def test_holds(xen_host: Host) -> None:
    """Holds a host until somebody ends the run."""
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    xen_host.succeed("sleep", "300", timeout_s=310.0)


def test_boots(hosts: Hosts, machine: Machine) -> None:
    """Makes a template that no store has, by an argument that Xen ignores."""
    word = uuid.uuid4().hex
    hosts.pristine(machine=machine.with_(xen_args=(f"selftest={word}",)))
