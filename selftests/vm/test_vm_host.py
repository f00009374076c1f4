"""The inner side on real hosts: what breaks there is told apart, and what a fake agent cannot show."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xentests.errors import CommandTimeout, HostHang, HypervisorCrash, UsageError
from xentests.host.agent import Agent
from xentests.host.hang import Dom0Hang, HypervisorHang
from xentests.host.host import Host
from xentests.payload.builder import Hook, PayloadBuilder
from xentests.payload.symbols import read_symbols
from xentests.payload.x86 import Code
from xentests.session import Session, machine_of

SILENCE_S = 5.0


@pytest.fixture
def host(session: Session, runs: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A clone of the default host."""
    host = session.clone(session.template(), name=request.node.name, log_dir=runs / request.node.name, standby=False)
    yield host
    session.end(host)


@pytest.fixture(scope="module")
def builder(session: Session) -> Callable[[], PayloadBuilder]:
    """Makes payloads that break the hypervisor under test."""
    assert session.image.symbols is not None
    symbols = read_symbols(session.image.symbols)
    return lambda: PayloadBuilder("broken", symbols)


def ask_until_silent(host: Host) -> None:
    """What was started to silence a host takes a moment to do so."""
    agent = Agent(host.domain, host.console)
    for _ in range(1000):
        agent.call("guest-ping", silence_s=SILENCE_S)


def test_xen_panics(host: Host, builder: Callable[[], PayloadBuilder]) -> None:
    """An invalid instruction in the hypervisor: the crash is expected, ends the command, and its report is whole."""
    payload = builder().hook(Hook.LOAD, Code().ud2()).build()
    with host.console.expect_crash("Panic on CPU") as crash:
        host.livepatch.upload(payload).apply()
    assert "FATAL TRAP" in crash.report
    assert "'noreboot' specified" in crash.report


def test_xen_panics_unexpectedly(host: Host, builder: Callable[[], PayloadBuilder]) -> None:
    """The same without being announced is raised by the command under way, and by everything after it."""
    payload = builder().hook(Hook.LOAD, Code().ud2()).build()
    with pytest.raises(HypervisorCrash, match=r"FATAL TRAP(?s:.*)maintainers of the release"):
        host.livepatch.upload(payload).apply()
    with pytest.raises(HypervisorCrash):
        host.succeed("true")


def test_dom0_panics(host: Host) -> None:
    """The kernel of dom0 panics: another crash, told apart by its pattern."""
    with host.console.expect_crash("Kernel panic - not syncing: sysrq triggered crash") as crash:
        host.start("sh", "-c", "echo c >/proc/sysrq-trigger").wait(20)
    assert crash.name.startswith("dom0-")


def test_xen_hangs(host: Host, builder: Callable[[], PayloadBuilder]) -> None:
    """A hypervisor that spins with interrupts off answers no debug key: a hypervisor hang."""
    spins = Code().raw(b"\xfa").label("here").jump("here")  # cli; jmp .
    payload = host.livepatch.upload(builder().hook(Hook.APPLY, spins).build())
    host.start("xen-livepatch", "apply", payload.name)
    with pytest.raises(HypervisorHang, match="Xen does not answer its debug keys"):
        ask_until_silent(host)


def test_dom0_hangs(host: Host) -> None:
    """A silent agent under a Xen that answers: a dom0 hang, and the log shows what its vCPUs were doing."""
    host.start("pkill", "-STOP", "-x", "qemu-ga")
    with pytest.raises(Dom0Hang):
        ask_until_silent(host)
    log = host.console.text()
    assert "'0' pressed -> dumping Dom0's registers" in log
    assert "'q' pressed -> dumping domain info" in log


def test_somebody_presses_reset(host: Host) -> None:
    """A host that boots again although nobody asked it to has crashed, as far as its test is concerned."""
    machine_of(host).reset()
    with pytest.raises(HypervisorCrash, match="Xen booted again although nobody asked it to"):
        host.console.wait_for("xentests: dom0 ready", timeout_s=90)


def test_somebody_pauses_the_machine(host: Host) -> None:
    """A machine whose CPUs stand still is not taken for a hypervisor that hangs."""
    machine_of(host).pause()
    with pytest.raises(HostHang, match="its machine is not running but 'paused'"):
        host.succeed("true")


def test_more_output_than_can_be_passed_on(host: Host) -> None:
    """libvirt gives up an agent that answers too much: that is said, and the next command is answered."""
    with pytest.raises(UsageError, match="wrote more than the 7 MiB"):
        host.run("head", "-c", 9 << 20, "/dev/zero", timeout_s=120)
    assert host.succeed("echo", "still there").text == "still there"


def test_input_and_files_of_any_size(host: Host, tmp_path: Path) -> None:
    """More than a request holds passes both ways unchanged."""
    data = os.urandom(700_000)
    assert host.succeed("cat", input_data=data, timeout_s=60).stdout == data
    (tmp_path / "local").write_bytes(data)
    host.push(tmp_path / "local", "/tmp/new/folder/file")
    host.pull("/tmp/new/folder/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_a_command_that_does_not_end(host: Host) -> None:
    """It is killed in dom0 with what it started, and what it was doing is in the error."""
    with pytest.raises(CommandTimeout, match=r"it was killed \(Name: sh, State: S \(sleeping\)(?s:.*)half-way"):
        host.run("sh", "-c", "echo half-way; sleep 1000; echo never", timeout_s=1)
    assert host.run("pgrep", "-x", "sleep").exit_code == 1
