"""Not a selftest but what test_vm_faults runs in a pytest of its own: real hosts to which something happens."""

from __future__ import annotations

import os
import signal

import pytest

from xentests.deadline import until
from xentests.errors import AgentUnresponsive, LabError
from xentests.host.host import Host
from xentests.lab.domain import Domain
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts


def _machine(host: Host) -> Domain:
    assert isinstance(host.domain, Domain)
    return host.domain


def test_dom0_panics_unseen(xen_host: Host) -> None:
    """dom0 panics after the test's last look."""
    xen_host.start("sh", "-c", "echo c >/proc/sysrq-trigger")
    log = xen_host.console.log
    until(lambda: b"sysrq: Trigger" in log.read_bytes(), what="a crash", deadline=10.0, error=LabError)


def test_qemu_is_killed(xen_host: Host) -> None:
    """Somebody kills the machine under the test."""
    pid = _machine(xen_host).pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    xen_host.succeed("true")


def test_giant_outgrows_its_budget(hosts: Hosts, machine: Machine) -> None:
    """A machine that is expected to occupy next to nothing boots a Xen."""
    hosts.pristine(machine=machine.with_(resident_mib=8), again=False)


def test_the_next_test_has_its_host(xen_host: Host) -> None:
    """What happened to the one before does not matter here."""
    assert xen_host.succeed("true").exit_code == 0


def test_dom0_falls_silent(xen_host: Host) -> None:
    """dom0's agent stops answering, and the test does not notice; Xen still answers."""
    xen_host.start("pkill", "-STOP", "qemu-ga")

    def silent() -> bool:
        try:
            _machine(xen_host).agent("guest-ping", timeout_s=1)
        except AgentUnresponsive:
            return True
        return False

    until(silent, what="silence", deadline=20.0, error=LabError)


def test_looks_at_a_shared_host(booted_xen: Host) -> None:
    """A shared host is spoilt by a test that fails on it."""
    booted_xen.write_file("/run/mark", b"")
    pytest.fail("on purpose")


def test_gets_another_shared_host(booted_xen: Host) -> None:
    """The next test gets a new one."""
    assert booted_xen.run("test", "-e", "/run/mark").exit_code == 1


@pytest.mark.needs("rtds")
def test_needs_what_is_not_built(xen_host: Host) -> None:
    """Debian's Xen 4.20 has no RTDS scheduler."""


@pytest.mark.needs("vmx")
def test_needs_what_the_machine_has_not(xen_host: Host) -> None:
    """There is no VMX under TCG."""
