"""The program that uses a guest's memory by physical frame: a static x86-64 ELF file of a kilobyte, made here.

It touches anonymous pages one by one, asks the kernel for the frame behind each (/proc/self/pagemap), fills the whole
page with the page's own address, and goes on until it has had as many pages as wanted in every window of frames, or
its limit is reached. Only then does it read all pages again: two frames that are one memory hold the later address.

Reads ``request`` from stdin and writes it back with its findings. Sources: Linux's Documentation/admin-guide/mm/
pagemap.rst and system call table; elf(5); ``payload.x86`` for the instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xentests.payload.x86 import Code

WINDOWS = 6
FAILURES = {
    1: "read: the request was cut off",
    2: "mmap: no address space",
    3: "open: no /proc/self/pagemap",
    4: "pread: a page has no entry in the page map",
    5: "a page that was just written is not present, or its frame is hidden",
}
"""What exit codes mean."""

_PAGE = 4096
_HEAD = struct.Struct("<4Q")  # limit in bytes; pages touched, pages wrong; unused
_WINDOW = struct.Struct("<8Q")  # first and last frame, pages wanted; pages had, lowest, highest frame, wrong; unused
_NOTHING_YET = 1 << 62
_REQUEST = _HEAD.size + WINDOWS * _WINDOW.size

_BASE = 0x400000
_BUFFER = _BASE + 0x80
_PATH = _BUFFER + 8
_TABLE = _BUFFER + 0x40
_FIRST_WINDOW = _TABLE + _HEAD.size
_CODE = _TABLE + _REQUEST
_READ, _WRITE, _OPEN, _MMAP, _PREAD, _EXIT = 0, 1, 2, 9, 17, 60


@dataclass(frozen=True)
class Window:
    """Frames from ``first`` to ``last``, of which ``wanted`` are to be used.

    Afterwards: ``pages`` that were, from frame ``lowest`` to ``highest``, and how many of these did not keep what was
    written.
    """

    first: int
    last: int
    wanted: int
    pages: int = 0
    lowest: int = 0
    highest: int = 0
    wrong: int = 0


def request(windows: Sequence[Window], limit_pages: int) -> bytes:
    """What the program reads: at most ``WINDOWS`` windows, and how many pages it may touch."""
    table = [_WINDOW.pack(each.first, each.last, each.wanted, 0, _NOTHING_YET, 0, 0, 0) for each in windows]
    table += [_WINDOW.pack(1, 0, 0, 0, 0, 0, 0, 0)] * (WINDOWS - len(windows))
    return _HEAD.pack(limit_pages * _PAGE, 0, 0, 0) + b"".join(table)


def answer(data: bytes, count: int) -> tuple[int, int, list[Window]]:
    """Pages touched, pages wrong, and the first ``count`` windows. ValueError when that is not what was printed."""
    if len(data) != _REQUEST:
        raise ValueError(f"{len(data)} bytes instead of {_REQUEST}")
    _, touched, wrong, _ = _HEAD.unpack_from(data)
    windows = []
    for number in range(count):
        first, last, wanted, pages, lowest, highest, bad, _ = _WINDOW.unpack_from(
            data, _HEAD.size + number * _WINDOW.size
        )
        windows.append(Window(first, last, wanted, pages, lowest if pages else 0, highest, bad))
    return touched, wrong, windows


def program() -> bytes:
    """The ELF file, readable, writable and executable as one piece."""
    code = _code()
    data = bytes(_BUFFER - _BASE - 64 - 56) + bytes(8) + b"/proc/self/pagemap\0"
    body = data.ljust(_CODE - _BASE - 64 - 56, b"\0") + code
    size = 64 + 56 + len(body)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _CODE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 0x1000)
    return head + body


def _code() -> bytes:
    """r12 is where the pages are, r13 the page map, rbx the offset of a page, rbp the offset of the end."""
    code = Code()
    code.mov("rdi", 0).mov("rsi", _TABLE).mov("rdx", _REQUEST).mov("rax", _READ).syscall()
    code.mov("rcx", _REQUEST).compare("rax", "rcx").jump("fail 1", when="ne")
    code.mov("rdi", _TABLE).load("rbp", "rdi").copy(to="rsi", source="rbp")
    code.mov("rdi", 0).mov("rdx", 3).mov("r10", 0x22).mov("r8", -1).mov("r9", 0).mov("rax", _MMAP).syscall()
    code.test("rax").jump("fail 2", when="s").copy(to="r12", source="rax")
    code.mov("rdi", _PATH).mov("rsi", 0).mov("rdx", 0).mov("rax", _OPEN).syscall()
    code.test("rax").jump("fail 3", when="s").copy(to="r13", source="rax")

    code.mov("rbx", 0).label("write")
    _page(code).store("rdi", 0, "rdi")
    _frame(code)
    _page(code).copy(to="r8", source="rax").copy(to="rax", source="rdi").mov("rcx", 512).raw(
        b"\xf3\x48\xab"
    )  # rep stosq
    _count(code, _TABLE + 8)
    code.copy(to="rax", source="r8").mov("rdi", _FIRST_WINDOW).label("note")
    _outside(code, "noted")
    code.load("rsi", "rdi", 24).add("rsi", 1).store("rdi", 24, "rsi")
    code.load("rsi", "rdi", 32).compare("rax", "rsi").jump("not lower", when="g").store("rdi", 32, "rax")
    code.label("not lower").load("rsi", "rdi", 40).compare("rax", "rsi").jump("noted", when="l")
    code.store("rdi", 40, "rax").label("noted")
    _next_window(code, "note")
    code.add("rbx", _PAGE)
    code.mov("rdi", _FIRST_WINDOW).label("enough")  # of every window?
    code.load("rsi", "rdi", 24).load("rcx", "rdi", 16).compare("rsi", "rcx").jump("more", when="l")
    _next_window(code, "enough")
    code.jump("written").label("more").compare("rbx", "rbp").jump("write", when="l")
    code.label("written").copy(to="rbp", source="rbx")

    code.mov("rbx", 0).label("read")
    _page(code).copy(to="rax", source="rdi").mov("rcx", 512).raw(b"\xf3\x48\xaf")  # repe scasq
    code.jump("right", when="e")
    _count(code, _TABLE + 16)
    _frame(code)
    code.mov("rdi", _FIRST_WINDOW).label("blame")
    _outside(code, "blamed")
    code.load("rsi", "rdi", 48).add("rsi", 1).store("rdi", 48, "rsi").label("blamed")
    _next_window(code, "blame")
    code.label("right").add("rbx", _PAGE).compare("rbx", "rbp").jump("read", when="l")

    code.mov("rdi", 1).mov("rsi", _TABLE).mov("rdx", _REQUEST).mov("rax", _WRITE).syscall()
    code.mov("rdi", 0).label("exit").mov("rax", _EXIT).syscall()
    for number in FAILURES:
        code.label(f"fail {number}").mov("rdi", number).jump("exit")
    return code.content


def _page(code: Code) -> Code:
    """The address of the page into rdi."""
    return code.copy(to="rdi", source="r12").raw(b"\x48\x01\xdf")  # add %rbx, %rdi


def _frame(code: Code) -> None:
    """The frame of the page into rax: bits 0 to 54 of its entry in the page map, if bit 63 (present) is set."""
    _page(code).copy(to="r10", source="rdi").raw(b"\x49\xc1\xea\x09")  # shr $9, %r10: 8 bytes a page
    code.copy(to="rdi", source="r13").mov("rsi", _BUFFER).mov("rdx", 8).mov("rax", _PREAD).syscall()
    code.mov("rcx", 8).compare("rax", "rcx").jump("fail 4", when="ne")
    code.mov("rdi", _BUFFER).load("rax", "rdi").test("rax").jump("fail 5", when="ns")
    code.raw(b"\x48\xc1\xe0\x09\x48\xc1\xe8\x09")  # shl $9, %rax; shr $9, %rax
    code.test("rax").jump("fail 5", when="e")


def _count(code: Code, address: int) -> None:
    code.mov("rdi", address).load("rsi", "rdi").add("rsi", 1).store("rdi", 0, "rsi")


def _outside(code: Code, label: str) -> None:
    """To ``label`` when the frame in rax is not in the window at rdi."""
    code.load("rsi", "rdi").compare("rax", "rsi").jump(label, when="l")
    code.load("rsi", "rdi", 8).compare("rax", "rsi").jump(label, when="g")


def _next_window(code: Code, label: str) -> None:
    code.add("rdi", _WINDOW.size).mov("rcx", _CODE).compare("rdi", "rcx").jump(label, when="l")
