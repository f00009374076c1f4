"""What a load guest does: works as it is told on its console, from a common moment on, and says there how fast it was.

Written once for both instruction sets. Each of the guest's rounds begins with sleeping until a moment of Xen's time
(SCHEDOP_poll with a timeout) and ends after so much work; with unlimited work there is one round. It notes

- for each round, how long after that moment it ran again: from Xen's own account of its vCPU (the runstate area);
- with unlimited work instead, how much work was done at each of many equal steps of time;
- every gap of its time counter while it wanted to work: when it did not run.

Then it waits to be told again. No interrupts, no memory to speak of, no second vCPU. Sources: sched.h, vcpu.h, xen.h
and io/console.h in xen/include/public.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xentests.load.assembler import X86, Arm64, Assembler, Register

CHUNK = 250
"""Instructions of work between two looks at the clock, which take two dozen more."""
WORDS = 1000
"""Entries of the table that a guest has room for."""
HEAD = (
    "tag", "words", "rounds", "chunks", "gaps", "lost_ns", "longest_ns", "begun_ns", "ended_ns", "skipped", "ran_ns",
    "waited_ns", "skew_ns",
)  # fmt: skip
"""What a guest prints before its table, each a number of 64 bits."""
FOREVER = 1 << 62

DATA_PAGE, SHARED_PAGE = 1, 3
"""Pages of the program for its data (an emulator takes what is written beside code for new code, which takes it long),
and the one that becomes the shared info page. Memory does not end before that."""
PENDING = {"amd64": 32 * 64, "arm64": 48}
"""Where in that page events are marked as pending: behind the vcpu_info of 32 vCPUs, or of one."""

_MEMORY_OP, _UPDATE_VA_MAPPING, _VCPU_OP, _SCHED_OP, _EVENT_OP, _HVM_OP = 12, 14, 24, 29, 32, 34
_ADD_TO_PHYSMAP = 7
_RUNSTATE, _POLL, _SEND, _GET_PARAM = 5, 3, 4, 1
_DOMID_SELF, _CONSOLE_FRAME, _CONSOLE_PORT = 0x7FF0, 17, 18
# struct xencons_interface: two rings of bytes and their indices.
_OUT, _IN_CONSUMED, _IN_PRODUCED, _OUT_CONSUMED, _OUT_PRODUCED = 1024, 3072, 3076, 3080, 3084
_IN_BITS, _OUT_BITS = 10, 11
_BACK_SOON_NS = 5_000_000

# Offsets from `base`: what the guest is told comes first, then what it keeps.
_TOLD = struct.Struct("<8q")
_OFFSET, _PERIOD, _WORK, _STEP, _WINDOW, _GAP, _TOLD_TAG, _START = range(0, 64, 8)
_ARGUMENT, _SLEEP, _RUN, _RING, _PORT, _DUE, _LEFT, _LIMIT, _WAIT, _PENDING = (
    64, 96, 128, 192, 200, 208, 216, 224, 232, 240,
)  # fmt: skip
_RESULT = 256
_TABLE = _RESULT + 8 * len(HEAD)
SIZE = _TABLE + 4 * WORDS
(
    _TAG, _WORDS, _ROUNDS, _CHUNKS, _GAPS, _LOST, _LONGEST, _BEGUN, _ENDED, _SKIPPED, _RAN, _WAITED, _SKEW,
) = range(_RESULT, _TABLE, 8)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """Parameters, in ns but for ``work`` (chunks in a round; FOREVER). ``step`` is 0 where rounds are noted.

    ``offset`` is from the common moment to the first round, ``period`` from one round to the next, ``window`` from the
    moment to the end of all; a ``gap`` shorter than that is no gap.
    """

    offset: int = 0
    period: int = FOREVER
    work: int = FOREVER
    step: int = 0
    window: int = 1_000_000_000
    gap: int = 100_000

    def pack(self, tag: int) -> bytes:
        """All but the moment, which comes last: 8 bytes, appended by whoever knows it."""
        return struct.pack("<7q", self.offset, self.period, self.work, self.step, self.window, self.gap, tag)


def program(arch: str) -> bytes:
    """The code, which ends on the page that it begins on; zeros must follow it up to the end of ``SHARED_PAGE``."""
    code = X86() if arch == "amd64" else Arm64()
    code.label("start").address("at", "start").shift("at", -12)
    code.copy("base", "at").const("a", DATA_PAGE).add("base", "a").shift("base", 12)
    _find_pages(code, arch)
    _pointer(code, "a", _RUN)
    code.store("base", _ARGUMENT, "a")
    _pointer(code, "d", _ARGUMENT)
    code.hypercall(_VCPU_OP, _RUNSTATE, 0, "d")
    code.label("again")
    _listen(code)
    _count(code)
    _print(code)
    return code.jump("again").content


def _find_pages(code: Assembler, arch: str) -> None:
    """The console's ring and port, and the shared info page; ``at`` is the frame of the program's first page."""
    code.const("a", SHARED_PAGE).add("at", "a")
    if arch == "amd64":
        # The start info page has the port at 80; the console's ring is two pages further (xen.h, bootstrap elements).
        assert isinstance(code, X86)
        code.take_start("skew").load("a", "skew", 80, size=4).store("base", _PORT, "a").load("next", "skew", 40)
        code.const("a", 0x2000).add("skew", "a").store("base", _RING, "skew")
        code.shift("at", 12).const("a", 7).add("next", "a").hypercall(_UPDATE_VA_MAPPING, "at", "next", 2)
    else:
        for parameter, place, bits in ((_CONSOLE_FRAME, _RING, 12), (_CONSOLE_PORT, _PORT, 0)):
            code.const("a", parameter << 32 | _DOMID_SELF).store("base", _ARGUMENT, "a")
            _pointer(code, "d", _ARGUMENT)
            code.hypercall(_HVM_OP, _GET_PARAM, "d").load("a", "base", _ARGUMENT + 8)
            if bits:
                code.shift("a", bits)
            code.store("base", place, "a")
        # struct xen_add_to_physmap: the space of the shared info page is 0.
        code.const("a", _DOMID_SELF).store("base", _ARGUMENT, "a").const("a", 0).store("base", _ARGUMENT + 8, "a")
        code.store("base", _ARGUMENT + 16, "at")
        _pointer(code, "d", _ARGUMENT)
        code.hypercall(_MEMORY_OP, _ADD_TO_PHYSMAP, "d").shift("at", 12)
    code.const("a", PENDING[arch]).add("at", "a").store("base", _PENDING, "at")


def _pointer(code: Assembler, to: Register, offset: int) -> None:
    code.const(to, offset).add(to, "base")


def _sleep(code: Assembler, until: Register) -> None:
    """Until that moment, 0 for none, or until an event comes."""
    code.store("base", _SLEEP + 16, until)
    _pointer(code, "d", _SLEEP)
    code.hypercall(_SCHED_OP, _POLL, "d")


def _listen(code: Assembler) -> None:
    """Wait for the 64 bytes of ``Told`` on the console. An event is sent only while none is marked as pending."""
    code.load("skew", "base", _RING).jump("look").label("silence").const("a", 0)
    _sleep(code, "a")
    code.label("look").load("a", "base", _PENDING).const("b", 0).store("a", 0, "b").load(
        "a", "skew", _IN_PRODUCED, size=4
    ).load("b", "skew", _IN_CONSUMED, size=4).copy("c", "b")
    code.const("d", 64).add("c", "d").branch("silence", "a", "<", "c").const("next", 0)
    code.label("byte").copy("a", "b").shift("a", 64 - _IN_BITS).shift("a", _IN_BITS - 64).add("a", "skew")
    code.load("last", "a", 0, size=1).copy("a", "base").add("a", "next").store("a", 0, "last", size=1)
    code.const("a", 1).add("next", "a").add("b", "a").branch("byte", "b", "<", "c")
    code.store("skew", _IN_CONSUMED, "c", size=4)
    code.const("a", 0)
    for place in range(_RESULT, _TABLE, 8):
        code.store("base", place, "a")
    code.load("a", "base", _TOLD_TAG).store("base", _TAG, "a")


def _count(code: Assembler) -> None:
    """``count`` chunks so far; ``skew``: what makes the counter Xen's time; ``last``: when it was looked at."""
    _look(code)
    code.load("a", "base", _START).load("b", "base", _WINDOW).copy("end", "a").add("end", "b")
    code.load("b", "base", _OFFSET).add("a", "b").store("base", _DUE, "a")
    _pointer(code, "at", _TABLE)
    _pointer(code, "a", SIZE)
    code.store("base", _LIMIT, "a").const("count", 0)

    code.label("wait").load("a", "base", _DUE)
    _sleep(code, "a")
    code.load("b", "base", _RUN + 8).load("c", "base", _DUE)
    code.branch("woken", "b", ">=", "c")  # it ran again at or after the moment
    code.now("a").add("a", "skew").branch("wait", "a", "<", "c").copy("b", "a").sub("b", "c")
    code.store("base", _WAIT, "b").jump("measured")
    code.label("woken").sub("b", "c").store("base", _WAIT, "b")
    _look(code)
    code.label("measured").now("last").add("last", "skew")
    code.load("a", "base", _ROUNDS).const("b", 1).add("a", "b").store("base", _ROUNDS, "a")
    code.branch("not the first", "a", "!=", "b").store("base", _BEGUN, "last")
    code.load("a", "base", _RUN + 16).store("base", _RAN, "a").load("a", "base", _RUN + 24).store("base", _WAITED, "a")
    code.label("not the first")
    code.load("next", "base", _STEP).const("a", 0).branch("rounds", "next", "==", "a")
    code.load("a", "base", _DUE).add("next", "a").jump("begin")
    code.label("rounds").const("next", FOREVER).load("b", "base", _WAIT)
    _note(code, "b", "round")
    code.label("begin").load("a", "base", _WORK).store("base", _LEFT, "a")

    code.label("work").work(CHUNK)
    code.const("a", 1).add("count", "a").now("b").add("b", "skew")
    code.copy("c", "b").sub("c", "last").copy("last", "b").load("a", "base", _GAP).branch("ran on", "c", "<", "a")
    code.load("a", "base", _GAPS).const("b", 1).add("a", "b").store("base", _GAPS, "a")
    code.load("a", "base", _LOST).add("a", "c").store("base", _LOST, "a")
    code.load("a", "base", _LONGEST).branch("ran on", "a", ">=", "c").store("base", _LONGEST, "c")
    code.label("ran on").label("step").branch("no step", "last", "<", "next")
    _note(code, "count", "step")
    code.load("a", "base", _STEP).add("next", "a").jump("step")
    code.label("no step").branch("over", "last", ">=", "end")
    code.load("a", "base", _LEFT).const("b", 1).sub("a", "b").store("base", _LEFT, "a")
    code.const("b", 0).branch("work", "a", "!=", "b")

    code.load("a", "base", _DUE).load("b", "base", _PERIOD).label("later").add("a", "b").store("base", _DUE, "a")
    code.branch("over", "a", ">=", "end").branch("wait", "a", ">=", "last")
    code.load("c", "base", _SKIPPED).const("d", 1).add("c", "d").store("base", _SKIPPED, "c").jump("later")
    code.label("over").store("base", _ENDED, "last").store("base", _CHUNKS, "count").store("base", _SKEW, "skew")
    code.load("a", "base", _RUN + 16).add("a", "last").load("b", "base", _RUN + 8).sub("a", "b")
    code.load("b", "base", _RAN).sub("a", "b").store("base", _RAN, "a")
    code.load("a", "base", _RUN + 24).load("b", "base", _WAITED).sub("a", "b").store("base", _WAITED, "a")
    _pointer(code, "a", _TABLE)
    code.copy("b", "at").sub("b", "a").shift("b", -2).store("base", _WORDS, "b")


def _look(code: Assembler) -> None:
    """The counter against the moment, in Xen's time, at which this vCPU was last put onto a CPU."""
    code.now("skew").load("a", "base", _RUN + 8).sub("a", "skew").copy("skew", "a")


def _note(code: Assembler, source: Register, name: str) -> None:
    """Append a number of 32 bits to the table, as long as there is room."""
    code.load("a", "base", _LIMIT).branch(f"full {name}", "at", ">=", "a").store("at", 0, source, size=4)
    code.const("a", 4).add("at", "a").label(f"full {name}")


def _print(code: Assembler) -> None:
    """Results and table as 8 hex digits a line; ``count`` is what was put out, ``last`` where it is read from."""
    code.load("skew", "base", _RING).load("count", "skew", _OUT_PRODUCED, size=4)
    _pointer(code, "last", _RESULT)
    code.label("value").branch("printed", "last", ">=", "at").load("next", "last", 0, size=4).shift("next", 32)
    code.const("a", 4).add("last", "a").const("end", 9)
    code.label("digit").const("a", 1).sub("end", "a").const("b", 10).const("a", 0).branch("put", "end", "==", "a")
    code.copy("b", "next").shift("b", -60).shift("next", 4).const("a", 10).branch("small", "b", "<", "a")
    code.const("a", ord("a") - ord("0") - 10).add("b", "a").label("small").const("a", ord("0")).add("b", "a")
    code.label("put").store("base", _ARGUMENT + 8, "b")
    code.label("room").load("a", "skew", _OUT_CONSUMED, size=4).const("c", 1 << _OUT_BITS).add("a", "c")
    code.branch("fits", "count", "<", "a")
    _send(code)
    code.load("a", "base", _RUN + 8).const("b", _BACK_SOON_NS).add("a", "b")
    _sleep(code, "a")
    code.jump("room")
    code.label("fits").copy("a", "count").shift("a", 64 - _OUT_BITS).shift("a", _OUT_BITS - 64).add("a", "skew")
    code.load("b", "base", _ARGUMENT + 8).store("a", _OUT, "b", size=1).const("a", 1).add("count", "a")
    code.const("a", 0).branch("digit", "end", "!=", "a").jump("value")
    code.label("printed")
    _send(code)


def _send(code: Assembler) -> None:
    """Tell the other end of the console, which takes some and gives some room."""
    code.store("skew", _OUT_PRODUCED, "count", size=4).load("a", "base", _PORT).store("base", _ARGUMENT, "a")
    _pointer(code, "d", _ARGUMENT)
    code.hypercall(_EVENT_OP, _SEND, "d")
