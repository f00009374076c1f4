"""The serial console of one host: the only reader of its log, watching for crashes whenever anybody waits.

QEMU writes the log file; reading it needs no thread and loses nothing. What was read is scanned for crash patterns
(``crash``), always; ``check`` is called by every wait and every command of the host layer. Commands never go through
here: Xen's and dom0's own words are evidence, not a channel. Typing is for Xen's debug keys only.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from xentests.deadline import Deadline, until
from xentests.errors import CommandTimeout, DomainGone, HostHang, HypervisorCrash, LabError, ProductFailure, UsageError
from xentests.host.crash import BANNER, CrashScanner, Sighting
from xentests.text import clean, tail

_CHUNK = 256 << 10
_ASK_EVERY_S = 1.0  # whether there is still somebody to say something
_UNREAD_LIMIT = 4 << 20
_LINES_BEFORE, _LINES_AFTER = 12, 40
_STATE, _LINES_OF_STATE = "----[ Xen-", 70
_SWITCH_INPUT = b"\x01\x01\x01"
_TO_ANY = rb"\*\*\* Serial input to (\w+)"


class _Typist(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def console_log(self) -> Path: ...
    def console_write(self, data: bytes) -> None: ...
    def state(self) -> str: ...


class ConsoleTimeout(ProductFailure):
    """A text that had to come on a console did not come in time."""


class _ExpectedCrashSeen(HypervisorCrash):
    """Ends the body of ``expect_crash`` at the moment the crash is seen; never leaves that context."""


@dataclass
class ExpectedCrash:
    """What ``expect_crash`` gives: ``name`` of the pattern and the ``report`` around it, once the block has ended."""

    pattern: re.Pattern[str]
    name: str = ""
    report: str = ""


class Console:
    """Reads ``domain.console_log``. ``start`` is the offset where watching begins; what stands before it is history.

    ``banners`` is how many Xen banners are still due: 1 for a host that is booting, 0 for a clone of a booted one.
    A crash is sticky: once seen, every ``check`` raises it again, since the host it was seen on is lost.
    """

    def __init__(self, domain: _Typist, *, start: int = 0, banners: int = 1) -> None:
        self._domain = domain
        self.log = domain.console_log
        self._start = start
        self._offset = start
        self._file: BinaryIO | None = None
        self._closed = False
        self._scanner = CrashScanner(start)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread = ""
        self._banners_due = banners
        self.banners_seen = 0
        self._sightings: list[Sighting] = []
        self._crash: HypervisorCrash | None = None
        self.crashed = False
        """Whether a crash was seen, expected or not: this host is lost."""
        self._expected: ExpectedCrash | None = None

    def _pump(self) -> bool:
        """Read what is new in the log; True if anything was."""
        if self._file is None:
            if self._closed:
                return False
            try:
                self._file = self.log.open("rb", buffering=0)
            except FileNotFoundError:
                return False
        new = False
        self._file.seek(self._offset)
        while data := self._file.read(_CHUNK):
            new = True
            self._offset += len(data)
            self._unread = (self._unread + self._decoder.decode(data).replace("\r", ""))[-_UNREAD_LIMIT:]
            for sighting in self._scanner.feed(data):
                self._note(sighting)
        return new

    def _note(self, sighting: Sighting) -> None:
        if sighting.name == BANNER:
            self.banners_seen += 1
            if self._banners_due:
                self._banners_due -= 1
                return
        self._sightings.append(sighting)

    def check(self) -> None:
        """Raise HypervisorCrash if a crash stands on the console uninvited; cheap enough for every step of a wait."""
        self._pump()
        if self._crash is None and self._sightings:
            self._judge(self._sightings[0])
        if self._crash is not None:
            raise self._crash

    def _judge(self, sighting: Sighting) -> None:
        self.crashed = True
        self._settle()
        report = self._around(sighting.offset)
        self._sightings.clear()
        expected = self._expected
        if expected is not None and expected.pattern.search(report):
            expected.name, expected.report = sighting.name, report
            raise _ExpectedCrashSeen(report)
        what = "Xen booted again although nobody asked it to" if sighting.name == BANNER else f"crash ({sighting.name})"
        also = f" (a crash matching {expected.pattern.pattern!r} was expected, this is not it)" if expected else ""
        self._crash = HypervisorCrash(
            f"{self._domain.name}: {what}{also}:\n{report}\n"
            f"The whole console: {self.log}. This host is lost: read the lines above and report them to the "
            "maintainers of the release; `--xen-keep` keeps the host for a look."
        )

    def _settle(self) -> None:
        """Let a dying Xen finish its words: until the log has stood still for three looks, at most two seconds."""
        still = 0
        deadline = Deadline(2.0)

        def quiet() -> bool:
            nonlocal still
            still = 0 if self._pump() else still + 1
            return still >= 3 or deadline.passed

        until(quiet, what="a quiet console", deadline=10.0, error=ProductFailure, every_s=0.05, slowest_s=0.05)

    def _around(self, offset: int) -> str:
        first = max(0, offset - 8192)
        with self.log.open("rb") as file:
            file.seek(first)
            before = file.read(offset - first)
            after = file.read(16 << 10)
        before, after = (part.replace(b"\r", b"") for part in (before, after))
        line_start = before.rfind(b"\n") + 1
        lines = clean(before[:line_start]).split("\n")[:-1]
        # From Xen's registers on, if it printed them: where it was stands at their head.
        at = next((n for n in range(1, min(_LINES_OF_STATE, len(lines)) + 1) if _STATE in lines[-n]), 0)
        above = lines[-max(at, _LINES_BEFORE) :]
        below = clean(before[line_start:] + after, limit=8000).split("\n")[:_LINES_AFTER]
        return "\n".join(f"    {line}" for line in [*above, *below]).rstrip()

    def text(self) -> str:
        """The whole console so far, history included, cleaned of what a terminal or a parser must not see."""
        return clean(self.raw().replace(b"\r", b""))

    def raw(self) -> bytes:
        """The whole console so far as it came."""
        try:
            return self.log.read_bytes()
        except FileNotFoundError:
            return b""

    def tail(self, lines: int = 15) -> str:
        """The last lines, cleaned, for an error message."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - (32 << 10)))
                return tail(file.read(), lines=lines)
        except FileNotFoundError:
            return ""

    def read(self) -> str:
        """The text that came since the last ``read`` or match of ``wait_for``, cleaned. Raises HypervisorCrash."""
        self.check()
        text, self._unread = self._unread, ""
        return clean(text)

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait for a regular expression in the text not yet read, and read up to the end of its match.

        The text holds ``\\n`` line ends and is otherwise raw. Raises ConsoleTimeout, or HypervisorCrash as soon as a
        crash is seen, or DomainGone when no more can come.
        """
        try:
            regex = re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise UsageError(f"wait_for({pattern!r}): not a regular expression: {error}") from error
        match = self._wait(regex, timeout_s)
        if match is None:
            raise ConsoleTimeout(
                f"{self._domain.name}: {pattern!r} did not come on the console within {Deadline(timeout_s).limit_s:.1f}"
                f" s. Last lines:\n{self.tail()}\nThe whole console: {self.log}. Look whether the host got stuck or "
                "says something else."
            )
        return match

    def _wait(self, regex: re.Pattern[str], timeout_s: float) -> re.Match[str] | None:
        deadline = Deadline(timeout_s)
        searched, asked = -1, time.monotonic()

        def look() -> re.Match[str] | bool:
            nonlocal searched, asked
            gone = False
            if time.monotonic() - asked > _ASK_EVERY_S:
                asked = time.monotonic()
                gone = self._domain.state() == "gone"  # before its last words are read
            self.check()
            match = regex.search(self._unread) if len(self._unread) != searched else None
            searched = len(self._unread)
            if gone and match is None:
                raise DomainGone(
                    f"{self._domain.name}: its QEMU ended while {regex.pattern!r} was waited for on its console. Last "
                    f"lines:\n{self.tail()}\nThe whole console: {self.log}. Look at the end of the domain's QEMU log"
                )
            return match or deadline.passed

        found = until(look, what="console", deadline=timeout_s + 60, error=ProductFailure, slowest_s=0.1)
        if not isinstance(found, re.Match):
            return None
        self._unread = self._unread[found.end() :]
        return found

    @contextmanager
    def expect_crash(self, pattern: str = "", *, timeout_s: float = 30.0) -> Iterator[ExpectedCrash]:
        """The block, or ``timeout_s`` after it, must bring a crash whose lines match ``pattern``.

        The block ends as soon as the crash is seen, wherever it is waiting then. Another crash raises HypervisorCrash
        as ever; none at all raises ProductFailure. The host is lost afterwards.
        """
        with self.may_crash(pattern) as expected:
            yield expected
            self._await_crash(timeout_s)
        if expected.name:
            return
        raise ProductFailure(
            f"{self._domain.name}: a crash matching {pattern!r} had to come within {timeout_s:.0f} s and did not. Last "
            f"lines of the console:\n{self.tail()}\nThe whole console: {self.log}"
        )

    @contextmanager
    def may_crash(self, pattern: str) -> Iterator[ExpectedCrash]:
        """The block may end with a crash whose lines match ``pattern``: a known one, to be told by ``name``.

        Another crash raises HypervisorCrash as ever.
        """
        self.check()
        expected = self._expected = ExpectedCrash(re.compile(pattern, re.MULTILINE))
        try:
            yield expected
            self.check()
        except _ExpectedCrashSeen:
            return
        except (HostHang, CommandTimeout, DomainGone):
            try:
                self._await_crash(2.0)
            except _ExpectedCrashSeen:
                return
            raise
        finally:
            self._expected = None

    def _await_crash(self, timeout_s: float) -> None:
        deadline = Deadline(timeout_s)

        def look() -> bool:
            self.check()
            return deadline.passed

        until(look, what="a crash", deadline=timeout_s + 60, error=ProductFailure)

    def expect_banner(self) -> None:
        """Say that one more boot of Xen is due: its banner is then no crash."""
        self._banners_due += 1

    @property
    def banners_due(self) -> int:
        """Xen banners announced by ``expect_banner`` that have not come yet."""
        return self._banners_due

    def xen_keys(self, keys: str, *, timeout_s: float = 3.0) -> bool:
        """Type debug keys to Xen itself, as ``xl debug-keys`` does from inside; their output is in the log.

        Three Ctrl-A switch the input between dom0 and Xen (docs/misc/xen-command-line.pandoc, ``conswitch``); it is
        left with dom0. Returns False if Xen did not react at all, which is how a dead hypervisor is told from a dead
        dom0. Raises HypervisorCrash.
        """
        for _ in range(2):
            said = self._type(_SWITCH_INPUT, _TO_ANY, timeout_s)
            if said is None:
                return False
            if said == b"Xen":
                break
        else:
            return True
        answered = True
        for key in keys:
            pressed = rb"('%s') pressed" % re.escape(key.encode("ascii"))
            answered = self._type(key.encode("ascii"), pressed, timeout_s) is not None and answered
        return self._type(_SWITCH_INPUT, _TO_ANY, timeout_s) is not None and answered

    def _type(self, data: bytes, answer: bytes, timeout_s: float) -> bytes | None:
        """Type ``data`` and return group 1 of the ``answer`` that the log shows after it, or None."""
        self.check()
        since = self._offset
        try:
            self._domain.console_write(data)
        except DomainGone:
            raise
        except LabError:  # the machine's UART is full and nobody empties it
            return None
        deadline = Deadline(timeout_s)

        def look() -> re.Match[bytes] | bool:
            self.check()
            with self.log.open("rb") as file:
                file.seek(since)
                return re.search(answer, file.read()) or deadline.passed

        found = until(look, what="an answer of Xen", deadline=timeout_s + 60, error=ProductFailure, slowest_s=0.1)
        return found.group(1) if isinstance(found, re.Match) else None

    def close(self) -> None:
        """Let go of the log file; what is written to it from now on is not seen any more."""
        self._closed = True
        if self._file is not None:
            self._file.close()
            self._file = None
