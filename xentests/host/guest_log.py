"""A guest's console as xenconsoled logged it in dom0: all it said since it was created, and waiting for it to speak.

xenconsoled appends to one file per name, so a guest made anew under an old name starts where the file ended before. An
HVM guest's emulated serial port is not logged there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from xentests.deadline import Deadline, until
from xentests.errors import CommandFailed, EmulatorFault, ProductFailure
from xentests.host import emulator_faults
from xentests.host.console import Console
from xentests.host.files import Files
from xentests.text import clean, head, tail

T = TypeVar("T")
_FOLDER = "/var/log/xen/console"
# Not only at the start of a line: there may stand the shell's prompt, and its question for the size of the terminal.
_TICK = re.compile(rb"tick (\d+) (\d+(?:\.\d+)?)\r?$", re.MULTILINE)
_BOOT = b"] Linux version "
"""How a boot begins; a panic before the last one is history."""
_PANIC = re.compile(rb"Kernel panic - not syncing|end Kernel panic|\] Oops: |\] BUG: unable to handle ")
_FLAGS = re.compile(rb"\bEFLAGS: ([0-9a-f]{8})\b")
_KNOWN_FLAGS = 0x3F7FD7
"""All bits of RFLAGS that are not always zero (AMD64 Architecture Programmer's Manual volume 2, "RFLAGS Register")."""
_DEATH_LINES = 40


class GuestFailure(ProductFailure):
    """A guest did not do what it had to, or died. The text holds its last words."""


@dataclass(frozen=True)
class Tick:
    """One line of a test guest's clock: the count since its boot, and its own uptime in seconds, in hundredths.

    The uptime is exact, so that two can be subtracted: 8.61 - 7.61 as floats is less than 1.
    """

    number: int
    uptime_s: Decimal


class GuestLog:
    """The log of the guest ``name``; made before the guest is created."""

    def __init__(self, name: str, files: Files, console: Console) -> None:
        self.path = f"{_FOLDER}/guest-{name}.log"
        self._name = name
        self._files = files
        self._console = console
        self._start = self._offset = len(self._rest(0))
        self._data = b""

    def _rest(self, offset: int) -> bytes:
        try:
            return self._files.read(self.path, offset=offset)
        except CommandFailed:  # xenconsoled makes the file with the guest's first console
            return b""

    def raw(self) -> bytes:
        """Everything so far, as it came."""
        new = self._rest(self._offset)
        self._offset += len(new)
        self._data += new
        return self._data

    def text(self) -> str:
        """Everything so far, cleaned."""
        return clean(self.raw())

    def ticks(self) -> list[Tick]:
        """Every tick so far, in order."""
        return [Tick(int(number), Decimal(uptime.decode())) for number, uptime in _TICK.findall(self.raw())]

    def wait_for(
        self, pattern: str, timeout_s: float, *, times: int = 1, boots: int = 0, alive: Callable[[], str] = lambda: ""
    ) -> re.Match[bytes]:
        """Wait until the log, from its start, holds a regular expression that many ``times``; the last match.

        ``alive`` is asked now and then and at the end; what it returns, unless empty, is why waiting has become
        pointless. Raises GuestFailure at once when ``alive`` says so or the guest's kernel panics; where a boot after
        a panic is waited for, ``boots`` is how many the log has to show before a panic counts.
        """
        regex = re.compile(pattern.encode(), re.MULTILINE)

        def search(data: bytes) -> re.Match[bytes] | None:
            found = list(regex.finditer(data))
            return found[-1] if len(found) >= times else None

        return self._wait(search, pattern, timeout_s, alive, boots)

    def wait_tick(self, timeout_s: float, *, alive: Callable[[], str] = lambda: "") -> Tick:
        """Wait for a tick that is not in the log yet, and return it. Raises GuestFailure."""
        seen = len(self.ticks())
        return self._wait(lambda _: next(reversed(self.ticks()[seen:]), None), "another tick", timeout_s, alive)

    def _wait(
        self,
        search: Callable[[bytes], T | None],
        pattern: str,
        timeout_s: float,
        alive: Callable[[], str],
        boots: int = 0,
    ) -> T:
        looks = 0

        def look() -> T | None:
            nonlocal looks
            self._console.check()
            data = self.raw()
            found = search(data)
            looks += 1
            begun = data.count(_BOOT) >= boots  # before that, a panic is what the boot waited for came from
            if found is None and begun and _PANIC.search(data, max(0, data.rfind(_BOOT))):
                raise self.failure(f"its kernel panicked while {pattern!r} was waited for")
            if found is None and looks % 8 == 0 and (why := alive()):
                raise self.failure(f"{why} while {pattern!r} was waited for")
            return found

        deadline = Deadline(timeout_s)
        found = until(
            look,
            what=pattern,
            deadline=deadline,
            error=lambda _: self.failure(f"{pattern!r} did not come within {deadline}{_and(alive())}"),
            every_s=0.03,
            slowest_s=0.4,
        )
        assert found is not None
        return found

    def failure(self, what: str) -> GuestFailure | EmulatorFault:
        """An error that says what was wanted of the guest, and shows what it died of or its last words, and the host's.

        An EmulatorFault where the guest did what only QEMU has a guest do. Registers that no CPU has are pointed out;
        whose they are is not decided: a PV guest's are stored by Xen.
        """
        data = self.raw()
        died = _PANIC.search(data, max(0, data.rfind(_BOOT)))
        shown = data[data.rfind(b"\n", 0, died.start()) + 1 :] if died else data
        words = head(shown, lines=_DEATH_LINES) if died else tail(shown)
        odd = [flags.decode() for flags in _FLAGS.findall(shown) if died and int(flags, 16) & ~_KNOWN_FLAGS]
        hint = f"\nEFLAGS {odd[0]} have bits that are zero on every CPU: suspect QEMU, too" if odd else ""
        of_qemu = emulator_faults.find(clean(shown))
        error = EmulatorFault if of_qemu else GuestFailure
        why = f"{what}. {of_qemu}" if of_qemu else what
        return error(
            f"guest {self._name}: {why}. {'What it died of' if died else 'Its last words'}:\n"
            f"{words or '(none since it was attached)'}{hint}\nAll of them: {self.path} in dom0. "
            f"Last lines of the host's console:\n{self._console.tail(8)}\nThe whole console: {self._console.log}"
        )


def _and(why: str) -> str:
    return f" ({why})" if why else ""
