"""What a crash looks like on a console: the patterns, and a scanner that finds them however the bytes arrive.

The scanner knows bytes and offsets, no files and no waiting; ``console`` does those. Patterns ask for the prefix that
Xen (``(XEN) ``) or dom0's kernel (``[  12.345678] ``) puts before its words, so that a guest or a process that prints
the same words is not taken for a crash. Sources: Xen's console.c ``panic()``, bug.c, traps.c, nmi.c and shutdown.c;
Linux's kernel/panic.c, lib/bug.c, kernel/watchdog.c and arch/*/kernel/traps.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_LINE = 16 << 10
"""Bytes of one line that are kept; what is longer is scanned in pieces of this size."""

_OVERLAP = 512
_XEN = rb"\(XEN\) (?:\[[^\]\n]{1,40}\] ?)?"
# Not behind "(d1) ": that is a guest speaking on Xen's own console.
_LINUX = rb"(?<!\) )\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? "
BANNER = "xen-banner"


@dataclass(frozen=True)
class CrashPattern:
    """One way to die: ``name`` for people and reports, ``regex`` over one line of raw console output."""

    name: str
    regex: bytes


PATTERNS: tuple[CrashPattern, ...] = (
    CrashPattern("xen-panic", _XEN + rb"Panic on CPU \d+"),
    CrashPattern("xen-bug", _XEN + rb"Xen BUG at "),
    CrashPattern("xen-assertion", _XEN + rb"Assertion '.*' failed at "),
    CrashPattern("xen-fatal-trap", _XEN + rb"(?:FATAL (?:TRAP|PAGE FAULT)|GENERAL PROTECTION FAULT|DOUBLE FAULT)"),
    CrashPattern("xen-unexpected-trap", _XEN + rb"CPU\d+: Unexpected Trap"),
    CrashPattern("xen-watchdog", _XEN + rb"Watchdog timer detects that CPU\d+ is stuck"),
    CrashPattern("dom0-crashed", _XEN + rb"(?:Hardware )?Dom(?:ain )?0 crashed"),
    CrashPattern("dom0-watchdog", _XEN + rb"(?:Hardware )?Dom(?:ain )?0 shutdown: watchdog"),
    CrashPattern("dom0-panic", _LINUX + rb"Kernel panic - not syncing"),
    CrashPattern("dom0-bug", _LINUX + rb"(?:kernel BUG at |(?:watchdog: )?BUG: )"),
    CrashPattern("dom0-oops", _LINUX + rb"(?:Oops(?:: |\b.*\[#\d+\])|Internal error: |general protection fault[,:])"),
    CrashPattern("dom0-unhandled", _LINUX + rb"Unable to handle kernel "),
    CrashPattern(BANNER, _XEN + rb"Xen version \d+\.\d+"),
)

_ANY = re.compile(b"|".join(b"(?P<p%d>%s)" % (number, pattern.regex) for number, pattern in enumerate(PATTERNS)))


@dataclass(frozen=True)
class Sighting:
    """A pattern was seen: its name, and the offset in the log (bytes) at which the matching text starts."""

    name: str
    offset: int


class CrashScanner:
    """Feed it bytes in pieces of any size; it yields every sighting once, in order.

    ``offset`` is where in the log the first byte to be fed stands. A line counts as soon as the pattern is complete,
    not only at its end: the last words of a dying Xen may lack their newline.
    """

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._pending = b""
        self._reported_to = offset

    def feed(self, data: bytes) -> Iterator[Sighting]:
        """Take the next bytes of the console and yield what they complete."""
        text = self._pending + data
        base = self._offset
        for match in _ANY.finditer(text):
            start = base + match.start()
            if start < self._reported_to:
                continue
            self._reported_to = base + match.end()
            assert match.lastgroup is not None
            yield Sighting(PATTERNS[int(match.lastgroup[1:])].name, start)
        line_start = text.rfind(b"\n") + 1
        if len(text) - line_start > LONGEST_LINE:
            line_start = len(text) - _OVERLAP
        self._pending = text[line_start:]
        self._offset = base + line_start
