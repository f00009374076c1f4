"""The console: crash patterns however the bytes arrive, expected crashes, waits, hostile text, Xen's debug keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fakes import FakeDomain, FakeImage, elapsed
from xentests.errors import DomainGone, HypervisorCrash, ProductFailure, UsageError
from xentests.host.console import Console, ConsoleTimeout
from xentests.host.crash import LONGEST_LINE, PATTERNS, CrashScanner
from xentests.host.host import Host

BANNER = "(XEN) Xen version 4.20.2-pre (Debian 4.20.2+7-g1badcf5035-0+deb13u1) (pkg-xen-devel@lists) debug=n\r\n"
PANIC = (
    "(XEN) ----[ Xen-4.20.2-pre  x86_64  debug=n  Not tainted ]----\r\n(XEN) CPU:    1\r\n(XEN) \r\n"
    "(XEN) ****************************************\r\n(XEN) Panic on CPU 1:\r\n(XEN) FATAL PAGE FAULT\r\n"
    "(XEN) ****************************************\r\n(XEN) Manual reset required ('noreboot' specified)\r\n"
)

# One line of each kind, as real consoles show them.
CRASHES = {
    "xen-panic": "(XEN) Panic on CPU 0:",
    "xen-bug": "(XEN) [2026-11-23 10:00:00] Xen BUG at common/page_alloc.c:1083",
    "xen-assertion": "(XEN) Assertion 'spin_is_locked(&l)' failed at common/x.c:12",
    "xen-fatal-trap": "(XEN) FATAL TRAP: vec 13, #GP[0000]",
    "xen-unexpected-trap": "(XEN) CPU0: Unexpected Trap: Data Abort",
    "xen-watchdog": "(XEN) Watchdog timer detects that CPU1 is stuck!",
    "dom0-crashed": "(XEN) Hardware Dom0 crashed: 'noreboot' set - not rebooting.",
    "dom0-watchdog": "(XEN) Hardware Dom0 shutdown: watchdog rebooting machine",
    "dom0-panic": "[   12.345678] Kernel panic - not syncing: Fatal exception",
    "dom0-bug": "[   12.345678][    T1] BUG: kernel NULL pointer dereference, address: 0000000000000010",
    "dom0-oops": "[   12.345678] Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "dom0-unhandled": "[   12.345678] Unable to handle kernel paging request at virtual address ffff",
    "xen-banner": BANNER.strip(),
}

HARMLESS = (
    "Panic on CPU 0: said a program",
    "(d1) [    1.000000] Kernel panic - not syncing: a guest's own panic",
    "[    0.000000] Command line: console=hvc0 panic=0 oops=panic",
    "(XEN) d1v0 Triple fault - invoking HVM shutdown action 1",
    "(XEN) Command line: console=com1 noreboot",
    "(XEN) Dom0 has maximum 2 VCPUs",
    "[    1.000000] debug: BUGs are welcome here",
    "xentests: dom0 ready",
)


@pytest.fixture
def domain(tmp_path: Path) -> FakeDomain:
    return FakeDomain(tmp_path)


@pytest.fixture
def console(domain: FakeDomain) -> Iterator[Console]:
    console = Console(domain, banners=0)
    yield console
    console.close()


def test_every_pattern_has_an_example() -> None:
    """No pattern without a line that it is for."""
    assert {pattern.name for pattern in PATTERNS} == set(CRASHES)


@pytest.mark.parametrize("name", CRASHES)
@pytest.mark.parametrize("pieces", [0, 1], ids=["whole", "bytewise"])
def test_crash_is_found(name: str, pieces: int) -> None:
    """Each kind of crash is found once, at its offset, in one piece or byte by byte, and behind half a line of dom0."""
    before = b"xentests: dom0 is sta"
    data = before + CRASHES[name].encode() + b"\r\nmore\r\n"
    scanner = CrashScanner(100)
    size = pieces or len(data)
    seen = [found for at in range(0, len(data), size) for found in scanner.feed(data[at : at + size])]
    assert [(found.name, found.offset) for found in seen] == [(name, 100 + len(before))]


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_lines(console: Console, domain: FakeDomain, line: str) -> None:
    """Words of crashes in other mouths are no crash."""
    domain.say(line + "\r\n")
    console.check()


def test_endless_line_is_bounded() -> None:
    """A line without an end costs bounded memory, and a crash inside it is found all the same."""
    scanner = CrashScanner()
    for _ in range(100):
        assert list(scanner.feed(b"x" * 4096)) == []
        assert len(scanner._pending) <= LONGEST_LINE + 4096
    found = [*scanner.feed(b"(XEN) Panic on"), *scanner.feed(b" CPU 3:\n")]
    assert [seen.name for seen in found] == ["xen-panic"]


def test_crash_quotes_its_lines(console: Console, domain: FakeDomain) -> None:
    """The error shows the lines around the crash, the log, and what to do; it is raised again at every look."""
    domain.say("[    9.000000] last words of dom0\r\n" + PANIC)
    for _ in range(2):
        with pytest.raises(HypervisorCrash) as caught:
            console.check()
        for part in ("last words of dom0", "FATAL PAGE FAULT", "Manual reset", str(domain.console_log), "report them"):
            assert part in str(caught.value)


def test_crash_report_waits_for_the_rest(console: Console, domain: FakeDomain) -> None:
    """What a dying Xen prints a moment after the first words is in the report."""
    domain.say("(XEN) Xen BUG at x.c:1\n")
    domain.later(0.1, lambda: domain.say("(XEN) Xen call trace: the rest\n"))
    with pytest.raises(HypervisorCrash, match="the rest"):
        console.check()


def test_hostile_crash_lines(console: Console, domain: FakeDomain) -> None:
    """Escapes, invalid UTF-8 and NUL bytes do not reach the error text."""
    domain.say(b"\xff\xfe\x1b[2J\x00\x9b31m\n(XEN) Panic on CPU 0:\x1b]0;owned\x07\n")
    with pytest.raises(HypervisorCrash) as caught:
        console.check()
    assert not set(str(caught.value)) & {"\x1b", "\x00", "\x9b", "\x07"}


@pytest.mark.parametrize("pieces", [0, 1, 7])
def test_wait_for(console: Console, domain: FakeDomain, pieces: int) -> None:
    """A text is found however it arrives, CR LF counts as a line end, and reading goes on behind the match."""
    domain.later(0.1, lambda: domain.say("one\r\nxentests: dom0 ready\r\nthree ü\r\n", pieces=pieces))
    assert console.wait_for(r"^xentests: (\w+) ready$", 10).group(1) == "dom0"
    console.wait_for("three", 10)
    assert console.read() == " ü\n"
    assert console.read() == ""


def test_wait_for_is_interrupted_by_a_crash(console: Console, domain: FakeDomain) -> None:
    """A crash ends a wait for something else at once."""
    domain.later(0.1, lambda: domain.say(PANIC))
    with pytest.raises(HypervisorCrash):
        assert elapsed(lambda: console.wait_for("never", 60)) < 10


def test_wait_for_times_out(console: Console, domain: FakeDomain) -> None:
    """The error names the pattern, the time, the last lines and the log."""
    domain.say("nothing of interest\n")
    with pytest.raises(ConsoleTimeout) as caught:
        console.wait_for("never", 0.2)
    for part in ("fake", "'never'", "0.2 s", "nothing of interest", str(domain.console_log)):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="not a regular expression"):
        console.wait_for("(", 1)


def test_wait_for_ends_with_the_machine(console: Console, domain: FakeDomain) -> None:
    """When QEMU has ended nothing more can come, which says nothing about Xen; what it wrote before still counts."""
    domain.say("last words\n")
    domain.gone = True
    with pytest.raises(DomainGone, match=r"fake: its QEMU ended while 'never' was waited for(?s:.*)last words"):
        assert elapsed(lambda: console.wait_for("never", 60)) < 10
    domain.later(0.1, lambda: domain.say("more\n"))
    assert console.wait_for("more", 60)


def test_log_that_is_not_there_yet(tmp_path: Path) -> None:
    """Before QEMU has made the file there is nothing to read, and no error."""
    domain = FakeDomain(tmp_path)
    domain.console_log.unlink()
    console = Console(domain)
    console.check()
    assert (console.read(), console.text(), console.tail()) == ("", "", "")
    domain.say("hello\n")
    assert console.read() == "hello\n"
    console.close()


def test_history_of_a_clone(domain: FakeDomain) -> None:
    """What stands before a clone's own life is in its log, and neither watched nor read again."""
    domain.say(BANNER + PANIC)
    domain.console_start = domain.console_log.stat().st_size
    host = Host(domain, FakeImage())
    host.console.check()
    assert host.console.read() == ""
    assert "FATAL PAGE FAULT" in host.console.text()
    domain.say(BANNER)
    with pytest.raises(HypervisorCrash, match="booted again"):
        host.console.check()
    host.close()


def test_one_banner_is_due_at_power_on(domain: FakeDomain) -> None:
    """A booting host may print its banner once; the second is a crash, unless announced."""
    console = Console(domain, banners=1)
    domain.say(BANNER)
    console.check()
    console.expect_banner()
    assert console.banners_due == 1
    domain.say(BANNER)
    console.check()
    domain.say(BANNER)
    with pytest.raises(HypervisorCrash, match="Xen booted again although nobody asked it to"):
        console.check()
    assert console.banners_seen == 3
    console.close()


def test_expected_crash(console: Console, domain: FakeDomain) -> None:
    """An announced crash ends the block where it waits, and its report can be read."""
    with console.expect_crash("FATAL PAGE FAULT") as crash:
        domain.later(0.1, lambda: domain.say(PANIC))
        console.wait_for("never", 60)
    assert crash.name == "xen-panic"
    assert "Manual reset" in crash.report


def test_known_crash(console: Console, domain: FakeDomain) -> None:
    """A crash that is known ends the block, and is told by its name; without one the block just ends."""
    with console.may_crash("FATAL PAGE FAULT") as crash:
        pass
    assert crash.name == ""
    with console.may_crash("FATAL PAGE FAULT") as crash:
        domain.later(0.1, lambda: domain.say(PANIC))
        console.wait_for("never", 60)
    assert crash.name == "xen-panic"
    assert console.crashed


def test_another_crash_than_the_known(console: Console, domain: FakeDomain) -> None:
    """A crash that is not the known one is a crash."""
    domain.later(0.1, lambda: domain.say(PANIC))
    with pytest.raises(HypervisorCrash, match="this is not it"), console.may_crash("GENERAL PROTECTION"):
        console.wait_for("never", 60)


def test_a_report_begins_with_the_registers(console: Console, domain: FakeDomain) -> None:
    """Where Xen was stands at their head, before a stack of any length; older states are not in it."""
    stack = "".join(f"(XEN)    {number:016x}\r\n" for number in range(40))
    first, second = (PANIC.replace("(XEN) CPU:    1", f"(XEN) RIP: {name}\r\n{stack}") for name in ("old", "here"))
    domain.say(first.split("(XEN) ****", 1)[0] + second)
    with pytest.raises(HypervisorCrash) as caught:
        console.check()
    assert "RIP: here" in str(caught.value)
    assert "RIP: old" not in str(caught.value)


def test_expected_crash_after_the_block(console: Console, domain: FakeDomain) -> None:
    """The crash may come a moment after the block."""
    with console.expect_crash() as crash:
        domain.later(0.2, lambda: domain.say(PANIC))
    assert crash.name == "xen-panic"


def test_expected_crash_must_come(console: Console, domain: FakeDomain) -> None:
    """A crash that was announced and does not come is a failure of the product."""
    with pytest.raises(ProductFailure, match="had to come within 0 s and did not"):  # noqa: SIM117
        with console.expect_crash("x", timeout_s=0.2):
            domain.say("all is well\n")


def test_another_crash_than_expected(console: Console, domain: FakeDomain) -> None:
    """A crash of another kind than announced is reported as such."""
    with pytest.raises(HypervisorCrash, match="this is not it"):  # noqa: SIM117
        with console.expect_crash("Assertion"):
            domain.say(PANIC)


def test_errors_inside_expected_crash(console: Console) -> None:
    """Other errors of the block are not swallowed."""
    with pytest.raises(KeyError), console.expect_crash(timeout_s=0.1):
        raise KeyError("x")


def test_a_machine_that_ended_with_the_expected_crash(console: Console, domain: FakeDomain) -> None:
    """Xen on Arm powers off at the end of its panic: what was under way ends by that, before the console is read."""
    with console.expect_crash("FATAL PAGE FAULT") as crash:
        domain.later(0.1, lambda: domain.say(PANIC))
        raise DomainGone("its QEMU is gone")
    assert crash.name == "xen-panic"


def test_a_machine_that_ended_without_the_expected_crash(console: Console) -> None:
    """The end of a machine is no crash of Xen."""
    with pytest.raises(DomainGone), console.expect_crash("FATAL PAGE FAULT"):
        raise DomainGone("its QEMU is gone")


def test_host_that_died_of_the_expected_crash(domain: FakeDomain) -> None:
    """A command that got no answer because of the announced crash is no error of its own."""
    host = Host(domain, FakeImage())
    domain.silent = True
    domain.later(0.2, lambda: domain.say(PANIC))
    with host.console.expect_crash("FATAL PAGE FAULT") as crash:
        host.run("true")
    assert crash.name == "xen-panic"
    host.close()


def test_debug_keys(console: Console, domain: FakeDomain) -> None:
    """Keys go to Xen whichever way the input pointed before, and the input is left with dom0; text stays readable."""
    assert console.xen_keys("hq")
    assert domain.typed == b"\x01\x01\x01hq\x01\x01\x01"
    domain.console_write(b"\x01\x01\x01")
    assert console.xen_keys("r")
    assert "'r' pressed" in console.read()
    assert not domain._input_to_xen
    domain.xen_alive = False
    assert not console.xen_keys("h", timeout_s=0.2)
