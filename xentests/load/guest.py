"""The kernel of a load guest, and what it printed when it was done.

Formats: elf(5) with the notes of xen/include/public/elfnote.h; Linux'
Documentation/arm64/booting.rst.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from xentests.load.program import DATA_PAGE, HEAD, SHARED_PAGE, SIZE, program

_BASE = 0x100000
_HEADERS = 64 + 2 * 56
_NOTES = 0x100
_CODE = 0x200
MEMORY = (SHARED_PAGE + 1) << 12
"""Bytes of the kernel in memory."""
MEMORY_MIB = {"amd64": 8, "arm64": 16}


def kernel(arch: str) -> bytes:
    """A kernel that ``xl create`` takes."""
    code = program(arch)
    assert _CODE + len(code) <= DATA_PAGE << 12
    assert SIZE <= SHARED_PAGE - DATA_PAGE << 12
    return _elf(code) if arch == "amd64" else _image(code)


def _note(kind: int, value: bytes) -> bytes:
    return struct.pack("<III", 4, len(value), kind) + b"Xen\0" + value + bytes(-len(value) % 4)


def _elf(code: bytes) -> bytes:
    entry, base, offset = ((kind, struct.pack("<Q", at)) for kind, at in ((1, _BASE + _CODE), (3, 0), (4, 0)))
    texts = ((5, b"xen-3.0\0"), (6, b"xentests-load\0"), (8, b"generic\0"), (9, b"yes\0"))
    notes = b"".join(_note(kind, value) for kind, value in (entry, base, offset, *texts))
    size = _CODE + len(code)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _CODE, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, MEMORY, 0x1000)
    head += struct.pack("<IIQQQQQQ", 4, 4, _NOTES, _BASE + _NOTES, _BASE + _NOTES, len(notes), len(notes), 4)
    return (head.ljust(_NOTES, b"\0") + notes).ljust(_CODE, b"\0") + code


def _image(code: bytes) -> bytes:
    head = struct.pack("<IIQQQQQQ4sI", 0x14000010, 0, 0x80000, MEMORY, 0xA, 0, 0, 0, b"ARM\x64", 0)
    # Memory behind the file is as its last owner left it (dom0, when it balloons): nobody clears what an Image lacks.
    return (head + code).ljust(MEMORY, b"\0")


@dataclass(frozen=True)
class Heard:
    """What a guest printed of one run. Times in ns; ``table`` as ``Told.step`` has it.

    ``lost_ns`` is by the guest's own clock: all the gaps in which it did not run though it wanted to. ``ran_ns`` and
    ``waited_ns`` are by Xen's account of its vCPU: running, and runnable. ``skew_ns`` makes its time counter
    Xen's time.
    """

    tag: int
    words: int
    rounds: int
    chunks: int
    gaps: int
    lost_ns: int
    longest_ns: int
    begun_ns: int
    ended_ns: int
    skipped: int
    ran_ns: int
    waited_ns: int
    skew_ns: int
    table: tuple[int, ...]


def heard(text: str) -> dict[int, Heard]:
    """What a guest's console has of its runs, by tag; one that is not complete is left out."""
    words = [int(word, 16) for word in re.findall(r"^([0-9a-f]{8})\r?$", text, re.MULTILINE)]
    found: dict[int, Heard] = {}
    while len(words) >= 2 * len(HEAD):
        head = [words[2 * index] | words[2 * index + 1] << 32 for index in range(len(HEAD))]
        head = [value - (value >> 63 << 64) for value in head]
        end = 2 * len(HEAD) + head[1]
        if len(words) >= end:
            values = dict(zip(HEAD, head, strict=True))
            found[head[0]] = Heard(**values, table=tuple(words[2 * len(HEAD) : end]))
        del words[:end]
    return found
