"""Guests: their configuration, log and console, on a shell of this machine that plays the guest; and leaks."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from pexpect.socket_pexpect import SocketSpawn  # noqa: TID251 - to have it read as it does now and then

from selftests.fakes import FakeDomain, FakeImage
from xentests.errors import EmulatorFault, HypervisorCrash, LabError, LabFull, UsageError
from xentests.host.guest_console import PORTS, GuestConsole
from xentests.host.guest_log import GuestFailure, GuestLog, Tick
from xentests.host.guest_spec import GuestSpec
from xentests.host.guests import Guests
from xentests.host.host import Host
from xentests.host.leaks import Leak, Snapshot, parse_snapshot

LIST = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
DOM0 = "Domain-0                                     0   512     2     r-----      30.6\n"


class PlayedGuest:
    """A guest's console on a socket: echoes what is typed, runs it in a shell, ticks in between, byte by byte."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.hang_up = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as typed, contextlib.suppress(ConnectionError):
            self._say(connection, b"guest# \x1b[6n")
            while line := self._line(typed):
                if self.hang_up:
                    return
                out = subprocess.run(["sh", "-c", line], capture_output=True, check=False).stdout
                self._say(connection, line + b"\r\ntick 7 8.15\r\n" + out.replace(b"\n", b"\r\n"))
                self._say(connection, b"tick 8 9.20\r\nguest# \x1b[6n")

    @staticmethod
    def _line(typed: object) -> bytes:
        line = b""
        while (byte := typed.read(1)) not in (b"\r", b""):  # type: ignore[attr-defined]
            line += byte
        return line

    @staticmethod
    def _say(connection: socket.socket, data: bytes) -> None:
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def domain(tmp_path: Path) -> FakeDomain:
    domain = FakeDomain(tmp_path)
    # The bridge in dom0 is played by the socket itself.
    domain.on_program = lambda argv: (0, b"") if argv[0] in ("setsid", "kill") else None
    return domain


@pytest.fixture
def host(domain: FakeDomain) -> Iterator[Host]:
    host = Host(domain, FakeImage())
    yield host
    host.close()


@pytest.fixture
def played(domain: FakeDomain) -> Iterator[PlayedGuest]:
    guest = PlayedGuest(domain.port(PORTS[0]))
    yield guest
    guest.close()


@pytest.fixture
def console(host: Host, played: PlayedGuest) -> Iterator[GuestConsole]:
    console = GuestConsole(host, "guest", 1)
    yield console
    console.close()


@pytest.fixture
def log(host: Host, tmp_path: Path) -> GuestLog:
    log = GuestLog("guest", host.files, host.console)
    log.path = str(tmp_path / "guest.log")
    return log


def say(log: GuestLog, text: str) -> None:
    with open(log.path, "a") as file:
        file.write(text)


def test_configuration_by_architecture() -> None:
    """PV is x86-64's own kind; arm64 has one kind, without a name; options win and are quoted as xl wants it."""
    spec = GuestSpec(name="g", memory_mib=96, kernel_args='a="b c"', options={"vif": ["mac=1", "bridge=x"], "vcpus": 3})
    assert spec.config("amd64").split("\n") == [
        'name = "g"',
        'type = "pv"',
        'tsc_mode = "native"',
        'kernel = "/usr/share/xentests/guest/kernel"',
        'ramdisk = "/usr/share/xentests/guest/initrd"',
        "extra = 'console=hvc0 pci=noearly a=\"b c\"'",
        "memory = 96",
        "vcpus = 3",
        'on_poweroff = "destroy"',
        'on_reboot = "restart"',
        'on_crash = "preserve"',
        'vif = [ "mac=1", "bridge=x" ]',
        "",
    ]
    assert 'type = "pvh"' in GuestSpec(kind="pvh").config("amd64")
    assert "type" not in GuestSpec(kind="pvh").config("arm64")
    with pytest.raises(UsageError, match="no PV guests on arm64"):
        GuestSpec(kind="pv").config("arm64")
    with pytest.raises(UsageError, match="no way to quote"):
        GuestSpec(options={"x": "'\""}).config("amd64")


def test_refused_guest_shows_its_configuration(host: Host, domain: FakeDomain) -> None:
    """What xl refuses is shown together with what it was given."""
    domain.on_program = lambda argv: (1, b"") if argv[0] == "xl" else None
    with pytest.raises(GuestFailure, match=r'exit code 1(?s:.*)name = "odd"'):
        host.guests.create(GuestSpec(name="odd"))
    with pytest.raises(UsageError, match="not usable as a file name"):
        host.guests.create(GuestSpec(name="../x"))
    assert isinstance(host.guests, Guests)
    assert host.guests.made == {}


def test_log_starts_with_the_guest(host: Host, log: GuestLog) -> None:
    """What a former guest of the same name said is not this one's."""
    say(log, "xentests: guest ready\n")
    second = GuestLog("guest", host.files, host.console)
    second.path = log.path
    second._offset = len(log.raw())
    assert second.text() == ""
    assert "ready" in log.text()


def test_ticks(log: GuestLog) -> None:
    """Ticks are read wherever they stand in a line, exactly; a wait is for one that is not there yet."""
    say(log, "tick 0 7.61\r\nguest# \x1b[6ntick 1 8.61\r\ntick 2 10\r\ntick x\r\n")
    assert log.ticks() == [Tick(0, Decimal("7.61")), Tick(1, Decimal("8.61")), Tick(2, Decimal(10))]
    assert log.ticks()[1].uptime_s - log.ticks()[0].uptime_s == 1
    threading.Timer(0.2, say, (log, "tick 3 11.5\r\n")).start()
    assert log.wait_tick(10) == Tick(3, Decimal("11.5"))


def test_waiting_for_a_guest(log: GuestLog) -> None:
    """Found at once, found the second time only, or not at all: then the last words and the time are in the error."""
    say(log, "booting\r\nxentests: guest ready\r\n")
    assert log.wait_for("^xentests: guest ready", 1)
    with pytest.raises(GuestFailure, match=r"did not come within 0.3 s of 0.3 s \(it sleeps\)(?s:.*)booting"):
        log.wait_for("^xentests: guest ready", 0.3, times=2, alive=lambda: "it sleeps")


def test_guest_that_dies_is_noticed_at_once(log: GuestLog) -> None:
    """A panic of the guest's kernel, or the loss of its domain, ends the wait."""
    with pytest.raises(GuestFailure, match="the domain is gone while"):
        log.wait_for("never", 60, alive=lambda: "the domain is gone")
    say(log, "[    1.0] Kernel panic - not syncing: VFS\n")
    with pytest.raises(GuestFailure, match="its kernel panicked while 'never'"):
        log.wait_for("never", 60)


@pytest.mark.parametrize(("flags", "odd"), [("00010246", False), ("04e0c096", True)])
def test_guest_that_oopses(log: GuestLog, flags: str, odd: bool) -> None:
    """What it died of is in the error, not what it said after; flags that no CPU has are pointed out."""
    say(log, "[    3.8] Oops: general protection fault: 0000 [#1] SMP\n[    3.8] RIP: e030:do_sync_core+0x28/0x30\n")
    say(log, f"[    3.8] RSP: e02b:ffffc9004004bd38 EFLAGS: {flags}\n" + "[    3.9] smp: Bringing up\n" * 60)
    with pytest.raises(
        GuestFailure, match=r"its kernel panicked while 'never'(?s:.*)died of(?s:.*)do_sync_core"
    ) as ended:
        log.wait_for("never", 60)
    assert ("zero on every CPU" in str(ended.value)) == odd


def test_guest_that_qemu_killed(log: GuestLog) -> None:
    """What only QEMU does to a guest is the lab's: the error says so, with the guest's words."""
    say(log, "[    5.4] Oops: int3: 0000 [#1] SMP\n[    5.4] RIP: e030:sched_clock_cpu+0x9/0x1d0\n")
    say(log, "[    5.4] Code: 41 54 55 53 66 <90> e8 b1 ef f0\n")
    with pytest.raises(EmulatorFault, match=r"while 'never'(?s:.*)kept a translation(?s:.*)died of(?s:.*)int3: 0000"):
        log.wait_for("never", 60)


def test_panic_that_a_restart_comes_from(log: GuestLog) -> None:
    """It does not end the wait for the boot that follows; a panic of that boot does."""
    boot, panic = "[    0.0] Linux version 6\n", "[    1.0] Kernel panic - not syncing: VFS\n"
    say(log, f"{boot}xentests: guest ready\n{panic}")
    with pytest.raises(GuestFailure, match="did not come within"):
        log.wait_for("^xentests: guest ready", 0.3, times=2, boots=2)
    say(log, f"{boot}{panic}")
    with pytest.raises(GuestFailure, match="its kernel panicked while"):
        log.wait_for("^xentests: guest ready", 60, times=2, boots=2)


def test_dialogue(console: GuestConsole) -> None:
    """Commands and answers, exit codes, ticks and prompts taken out, though everything comes byte by byte."""
    answer = console.run("echo one; echo two; exit_code() { return 5; }; exit_code")
    assert (answer.text, answer.exit_code) == ("one\ntwo\n", 5)
    assert console.run("printf 'ü\\n'").text == "ü\n"
    assert console.run("true").text == ""


def test_dialogue_that_gets_no_answer(console: GuestConsole) -> None:
    """The error has the pattern, the time and the last text, none of pexpect's."""
    with pytest.raises(GuestFailure) as caught:
        console.expect("never", timeout_s=0.6)
    text = str(caught.value)
    assert "guest guest on fake: 'never' did not come on its console within 0.6 s of 0.6 s" in text
    assert "guest#" in text
    assert "\x1b" not in text
    assert "pexpect" not in text
    with pytest.raises(UsageError, match="not a regular expression"):
        console.expect("(")
    with pytest.raises(UsageError, match="one line at a time"):
        console.run("a\nb")


def test_dialogue_with_no_time_left_of_a_slice(console: GuestConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    """pexpect reads with exactly 0.0 s left now and then: a socket then answers that it would have to wait."""
    read = SocketSpawn.read_nonblocking
    none_left = iter([True] * 50)
    refused = []

    def read_with_no_time(spawn: SocketSpawn[bytes], size: int, timeout: float) -> bytes:
        try:
            return read(spawn, size, 0.0 if next(none_left, False) else timeout)
        except BlockingIOError:
            refused.append(timeout)
            raise

    monkeypatch.setattr(SocketSpawn, "read_nonblocking", read_with_no_time)
    assert console.run("sleep 0.3; echo hello").text == "hello\n"
    assert refused


def test_dialogue_that_breaks_off(console: GuestConsole, played: PlayedGuest) -> None:
    """A console that closes is told from one that says nothing."""
    played.hang_up = True
    with pytest.raises(GuestFailure, match="its console closed after"):
        console.run("true")


def test_crash_during_a_dialogue(console: GuestConsole, domain: FakeDomain) -> None:
    """A panic of Xen ends a dialogue as any other wait."""
    domain.later(0.2, lambda: domain.say("(XEN) Panic on CPU 0:\n"))
    with pytest.raises(HypervisorCrash):
        console.expect("never", timeout_s=60)


def test_console_ports_run_out(host: Host, played: PlayedGuest) -> None:
    """A closed dialogue gives its port back; a port nobody listens at, and a fifth dialogue, are the lab's error."""
    console = GuestConsole(host, "guest", 1)
    assert host.console_ports == {PORTS[0]}
    with pytest.raises(LabError, match=f"cannot reach its port {PORTS[1]}"):
        GuestConsole(host, "other", 2)
    console.close()
    console.close()
    assert host.console_ports == set()
    with pytest.raises(UsageError, match="is closed"):
        console.send("x")
    host.console_ports |= set(PORTS)
    with pytest.raises(LabFull, match="all 4 console ports"):
        GuestConsole(host, "fifth", 5)


SNAPSHOT = f"""\
@@xentests-section@@xenstore
/local = ""
/local/domain = ""
/local/domain/0 = ""
@@xentests-section@@domains
{LIST}{DOM0}@@xentests-section@@info
free_memory            : 498
@@xentests-section@@processes
init
[kworker/0:1-events]
xenconsoled --log=guest
@@xentests-section@@devices
/sys/bus/xen-backend/devices:

/sys/class/net:
lo
@@xentests-section@@files
/var/lib/xen
@@xentests-section@@end
"""


def test_snapshot() -> None:
    """Everything a host holds is read; what comes and goes by itself is left out."""
    snapshot = parse_snapshot(SNAPSHOT)
    assert snapshot == Snapshot(
        xenstore=frozenset({"/local", "/local/domain", "/local/domain/0"}),
        domains=frozenset({"Domain-0 (id 0)"}),
        processes=Counter({"init": 1, "xenconsoled --log=guest": 1}),
        devices=frozenset({"/sys/class/net/lo"}),
        files=frozenset({"/var/lib/xen"}),
        free_memory_mib=498,
    )


@pytest.mark.parametrize(
    ("old", "new", "leak"),
    [
        (
            "/local/domain/0 =",
            '/local/domain/3 = ""\n/local/domain/3/x = ""\n/local/domain/0 =',
            "node /local/domain/3",
        ),
        (DOM0, DOM0 + DOM0.replace("Domain-0  ", "(null)    ").replace(" 0 ", " 5 ", 1), "domain (null) (id 5)"),
        ("init\n", "init\n[3.xvda-0]\n", "process [3.xvda-0] (1)"),
        ("lo\n", "lo\nvif3.0\n", "device /sys/class/net/vif3.0"),
        ("/var/lib/xen\n", "/var/lib/xen\n/var/lib/xen/save\n/var/lib/xen/save/a\n", "file /var/lib/xen/save"),
        ("498", "450", "48 MiB of Xen's free memory (498 -> 450)"),
    ],
    ids=["xenstore", "domain", "process", "device", "file", "memory"],
)
def test_each_leak_has_its_name(old: str, new: str, leak: str) -> None:
    """Each kind of thing that is left behind is named, once."""
    before = parse_snapshot(SNAPSHOT)
    (found,) = parse_snapshot(SNAPSHOT.replace(old, new, 1)).since(before)
    assert found.endswith(leak)


def test_what_is_kept_on_purpose_is_no_leak() -> None:
    """Directories that the first guest of a boot brings are none; a guest's own node below them is."""
    before = parse_snapshot(SNAPSHOT)
    first = SNAPSHOT.replace("/local =", '/vm = ""\n/libxl = ""\n/local =')
    assert parse_snapshot(first).since(before) == []
    assert parse_snapshot(first.replace("/vm =", '/vm/1 = ""\n/vm =')).since(before) == ["xenstore node /vm/1"]


def test_leak_check(host: Host, domain: FakeDomain) -> None:
    """What goes within the time to settle is no leak; what stays is listed."""
    held = {"now": SNAPSHOT.replace("lo\n", "lo\nvif3.0\n")}
    domain.on_program = lambda argv: (0, held["now"].encode())
    before = parse_snapshot(SNAPSHOT)
    domain.later(0.3, lambda: held.update(now=SNAPSHOT))
    host.leaks.check(before, settle_s=30)
    held["now"] = SNAPSHOT.replace("lo\n", "lo\nvif4.0\n")
    with pytest.raises(Leak, match=r"left behind(?s:.*)device /sys/class/net/vif4.0"):
        host.leaks.check(before, settle_s=0.2)
